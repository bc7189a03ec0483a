"""Find CUDA devices, and allocate memory on the device and pinned memory on the host.

ONNX Runtime allocates on the device. Its Python API cannot allocate pinned host memory (1.31 rejects
`cuda_pinned`), count devices or choose a device per thread. For these tasks the module calls the CUDA runtime, which
ONNX Runtime loads anyway.
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
    """Return whether this ONNX Runtime was built with CUDA, with or without a GPU in the machine."""
    return CUDA in ort.get_available_providers()


@dataclass(frozen=True, slots=True)
class Device:
    """The place of the tensors: a CUDA device, or the host's memory, which needs no GPU."""

    name: Literal["cuda", "cpu"]
    id: int = 0

    @classmethod
    def cuda(cls, number: int = 0) -> "Device":
        """Return CUDA device `number` modulo the number of devices; raise ProviderMissing if there is none."""
        return cls("cuda", number % _runtime().device_count())

    def tensor(self, shape: tuple[int, ...], kind: type[np.generic]) -> ort.OrtValue:
        """Return uninitialised device memory at a constant address; raise ProviderMissing if too little is free."""
        try:
            return ort.OrtValue.ortvalue_from_shape_and_type(shape, kind, self.name, self.id)
        except Exception as exc:  # ONNX Runtime's exceptions have no public base class
            cause = str(exc).splitlines()[0]
            raise ProviderMissing(f"{self.name} device {self.id} has no memory for {shape}: {cause}") from exc

    def host_rows(self, rows: int) -> Bitmaps:
        """Return host memory for `rows` bitmaps, pinned if the device is a GPU."""
        if self.name == "cpu":
            return np.zeros((rows, *ROW_SHAPE), np.uint8)
        self.enter_thread()
        return _runtime().pinned_bytes(rows * ROW_BYTES).reshape(rows, *ROW_SHAPE)

    def enter_thread(self) -> None:
        """Select this device for the thread: ONNX Runtime's copies wait for the thread's device, not for the data's."""
        if self.id:  # a new thread has device 0
            _runtime().set_device(self.id)


class _Runtime:
    """The CUDA runtime library."""

    def __init__(self) -> None:
        if not is_built_in():
            raise ProviderMissing(
                "this ONNX Runtime is built without it: install sketchbatch-service[gpu] in place of [cpu]"
            )
        ort.set_default_logger_severity(4)  # the exception already reports the cause
        with redirect_stdout(io.StringIO()) as printed:  # catches the printed names of missing libraries
            ort.preload_dlls()  # loads the CUDA libraries of pip's wheels
        try:
            self._library = ctypes.CDLL(f"libcudart.so.{ort.cuda_version.partition('.')[0]}")
        except OSError as exc:
            missing = [*printed.getvalue().splitlines(), str(exc)][0]
            raise ProviderMissing(f"CUDA {ort.cuda_version} is not installed: {missing}") from exc
        self._library.cudaGetErrorString.restype = ctypes.c_char_p

    def device_count(self) -> int:
        """Return the number of devices, at least 1; raise ProviderMissing without a device or driver."""
        count = ctypes.c_int()
        self._call("cudaGetDeviceCount", ctypes.byref(count))
        if not count.value:
            raise ProviderMissing("there is no CUDA device")
        return count.value

    def set_device(self, device_id: int) -> None:
        self._call("cudaSetDevice", device_id)

    def pinned_bytes(self, count: int) -> NDArray[np.uint8]:
        """Return page-locked memory, uint8 (count,), freed with the array."""
        address = ctypes.c_void_p()
        self._call("cudaHostAlloc", ctypes.byref(address), ctypes.c_size_t(count), ctypes.c_uint(_PORTABLE))
        memory = (ctypes.c_uint8 * count).from_address(address.value or 0)  # kept alive by arrays over it
        weakref.finalize(memory, self._library.cudaFreeHost, address).atexit = False
        return np.ctypeslib.as_array(memory)

    def _call(self, name: str, *arguments: object) -> None:
        error = getattr(self._library, name)(*arguments)
        if error:
            raise ProviderMissing(f"{name}: {self._library.cudaGetErrorString(error).decode()}")


@cache
def _runtime() -> _Runtime:
    return _Runtime()
