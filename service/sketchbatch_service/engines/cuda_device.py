"""Finds CUDA's devices, and gives out memory: the device's own, and the host's that the device reads by itself.

ONNX Runtime allocates on the device. Its Python offers no pinned host memory (1.31 refuses `cuda_pinned`), no number of
devices and no choice of one for a thread: those few calls go to the CUDA runtime that it loads anyway.
"""

import ctypes
import io
import weakref
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from ..arrays import ROW_BYTES, ROW_SHAPE, Bitmaps
from ..errors import ProviderMissing

CUDA = "CUDAExecutionProvider"

_PORTABLE = 1  # cudaHostAllocPortable: pinned for every device, not only the allocating thread's


def is_built_in() -> bool:
    """Whether this ONNX Runtime was built with CUDA; says nothing of a GPU."""
    return CUDA in ort.get_available_providers()


@dataclass(frozen=True, slots=True)
class Device:
    """Where the tensors are: a CUDA device, or this machine's own memory, which needs no GPU."""

    name: Literal["cuda", "cpu"]
    id: int = 0

    @classmethod
    def cuda(cls, number: int = 0) -> "Device":
        """The CUDA device of that number, counted around: past the last comes the first again.

        Raises:
            ProviderMissing: There is no CUDA, or no device.
        """
        return cls("cuda", number % _runtime().device_count())

    def tensor(self, shape: tuple[int, ...], kind: type[np.generic]) -> ort.OrtValue:
        """Uninitialised memory of the device, at an address that stays.

        Raises:
            ProviderMissing: It has none left.
        """
        try:
            return ort.OrtValue.ortvalue_from_shape_and_type(shape, kind, self.name, self.id)
        except Exception as exc:  # ONNX Runtime's own error types share no public base; the operator must hear
            cause = str(exc).splitlines()[0]
            raise ProviderMissing(f"{self.name} device {self.id} has no memory for {shape}: {cause}") from exc

    def host_rows(self, rows: int) -> Bitmaps:
        """Memory of the host for as many bitmaps, pinned where the device reads it by itself."""
        if self.name == "cpu":
            return np.zeros((rows, *ROW_SHAPE), np.uint8)
        self.enter_thread()
        return _runtime().pinned_bytes(rows * ROW_BYTES).reshape(rows, *ROW_SHAPE)

    def enter_thread(self) -> None:
        """Makes this the calling thread's device: ONNX Runtime's copy waits on the thread's device, not the data's."""
        if self.id:  # a thread begins with device 0
            _runtime().set_device(self.id)


class _Runtime:
    """The CUDA runtime library."""

    def __init__(self) -> None:
        if not is_built_in():
            raise ProviderMissing(
                "this ONNX Runtime is built without it: install sketchbatch-service[gpu] in place of [cpu]"
            )
        ort.set_default_logger_severity(4)  # our own errors say what failed
        with redirect_stdout(io.StringIO()) as said:  # it prints what it does not find
            ort.preload_dlls()  # finds the CUDA libraries of pip's wheels
        try:
            self._library = ctypes.CDLL(f"libcudart.so.{ort.cuda_version.partition('.')[0]}")
        except OSError as exc:
            missing = [*said.getvalue().splitlines(), str(exc)][0]
            raise ProviderMissing(f"CUDA {ort.cuda_version} is not installed: {missing}") from exc
        self._library.cudaGetErrorString.restype = ctypes.c_char_p

    def device_count(self) -> int:
        """At least 1.

        Raises:
            ProviderMissing: There is no device, or no driver.
        """
        count = ctypes.c_int()
        self._call("cudaGetDeviceCount", ctypes.byref(count))
        if not count.value:
            raise ProviderMissing("there is no CUDA device")
        return count.value

    def set_device(self, device_id: int) -> None:
        self._call("cudaSetDevice", device_id)

    def pinned_bytes(self, count: int) -> NDArray[np.uint8]:
        """uint8 (count,), page-locked; freed with the array."""
        address = ctypes.c_void_p()
        self._call("cudaHostAlloc", ctypes.byref(address), ctypes.c_size_t(count), ctypes.c_uint(_PORTABLE))
        memory = (ctypes.c_uint8 * count).from_address(address.value or 0)  # what arrays over it keep alive
        weakref.finalize(memory, self._library.cudaFreeHost, address).atexit = False
        return np.ctypeslib.as_array(memory)

    def _call(self, name: str, *arguments: object) -> None:
        error = getattr(self._library, name)(*arguments)
        if error:
            raise ProviderMissing(f"{name}: {self._library.cudaGetErrorString(error).decode()}")


@cache
def _runtime() -> _Runtime:
    return _Runtime()
