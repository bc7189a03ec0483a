"""Compare our copy of the Open Inference Protocol with another copy, field by field."""

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FileDescriptor
from sketchbatch.openinference.v2 import open_inference_pb2


def differences(*theirs: FileDescriptor) -> list[str]:
    """Return the names of the fields and enum values of our copy that the files `theirs` define differently.

    A message or an enum that exists in only one of the two copies is not reported.
    """
    found: list[str] = []
    for file in theirs:
        for name, message in file.message_types_by_name.items():
            if our := open_inference_pb2.DESCRIPTOR.message_types_by_name.get(name):
                found += _in_message(our, message)
        for name, enum in file.enum_types_by_name.items():
            found += _in_enum(open_inference_pb2.DESCRIPTOR.enum_types_by_name.get(name), enum)
    return found


def _in_message(our: Descriptor, their: Descriptor) -> list[str]:
    found = [
        f"{our.name}.{field.name}"
        for field in our.fields
        if field.name in their.fields_by_name and _shape(field) != _shape(their.fields_by_name[field.name])
    ]
    numbers = {field.number: field.name for field in their.fields}
    found += [f"{our.name}.{f.name}" for f in our.fields if numbers.get(f.number, f.name) != f.name]
    for nested in our.nested_types:
        if nested.name in their.nested_types_by_name:
            found += _in_message(nested, their.nested_types_by_name[nested.name])
    return found


def _shape(field) -> tuple:
    kind = field.message_type or field.enum_type
    return field.number, field.type, field.is_repeated, kind and kind.name


def _in_enum(our: EnumDescriptor | None, their: EnumDescriptor) -> list[str]:
    values = our.values_by_name if our else {}
    return [name for name, value in values.items() if their.values_by_name[name].number != value.number]
