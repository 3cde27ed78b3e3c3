"""Reads the metadata of an ONNX file without the onnx package or any engine.

An ONNX file is one protobuf message ``ModelProto``: fields follow each other as a key (field
number and wire type) and a value. Only the top level is walked; the graph, megabytes of it, is
stepped over. Field numbers: onnx.proto3.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO, Dict, Tuple

from ehrnet_model.errors import EhrnetError

_IR_VERSION, _GRAPH, _OPSET_IMPORT, _METADATA_PROPS = 1, 7, 8, 14
_ENTRY_KEY, _ENTRY_VALUE = 1, 2
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def read_metadata(path: Path) -> Dict[str, str]:
    """``metadata_props`` of an ONNX file.

    Raises:
        EhrnetError: the file cannot be read, is cut short, or is no ONNX file.
    """
    metadata: Dict[str, str] = {}
    seen = set()
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            while file.tell() < size:
                field, wire = _key(file)
                seen.add(field)
                if field == _METADATA_PROPS and wire == _BYTES:
                    length = _length(file, size)
                    key, value = _entry(file, file.tell() + length)
                    metadata[key] = value
                else:
                    _skip(file, wire, size)
    except OSError as error:
        raise EhrnetError(
            f"the model file {path} cannot be read: {error.strerror or error}."
        ) from None
    except (ValueError, EOFError):
        raise EhrnetError(_not_onnx(path)) from None
    if not {_IR_VERSION, _GRAPH, _OPSET_IMPORT} <= seen:
        raise EhrnetError(_not_onnx(path))
    return metadata


def _not_onnx(path: Path) -> str:
    return (
        f"{path} is not an ONNX file, or only part of one: copy or export it again (a Git LFS "
        "pointer is fetched with `git lfs pull`)."
    )


def _varint(file: BinaryIO) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            raise EOFError
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise ValueError


def _key(file: BinaryIO) -> Tuple[int, int]:
    key = _varint(file)
    if key >> 3 == 0:
        raise ValueError
    return key >> 3, key & 7


def _length(file: BinaryIO, end: int) -> int:
    length = _varint(file)
    if file.tell() + length > end:
        raise EOFError
    return length


def _skip(file: BinaryIO, wire: int, end: int) -> None:
    if wire == _VARINT:
        _varint(file)
    elif wire == _BYTES:
        file.seek(_length(file, end), 1)
    elif wire in (_FIXED32, _FIXED64):
        file.seek(4 if wire == _FIXED32 else 8, 1)
    else:
        raise ValueError


def _entry(file: BinaryIO, end: int) -> Tuple[str, str]:
    """One StringStringEntryProto that ends at ``end``."""
    parts = {_ENTRY_KEY: "", _ENTRY_VALUE: ""}
    while file.tell() < end:
        field, wire = _key(file)
        if field in parts and wire == _BYTES:
            parts[field] = file.read(_length(file, end)).decode("utf-8")
        else:
            _skip(file, wire, end)
    return parts[_ENTRY_KEY], parts[_ENTRY_VALUE]
