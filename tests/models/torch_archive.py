"""Writes files as ``torch.save`` does, pickle opcode by opcode, so that tests need no PyTorch."""

import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

_STORAGES = {"float32": "FloatStorage", "float16": "HalfStorage", "int64": "LongStorage", "float64": "DoubleStorage"}


class Raw(bytes):
    """Pickle opcodes to put in as they are: one value."""


def write_torch(path: Path, tree: Any) -> Path:
    """``tree`` of dicts, lists, numpy arrays, numbers, strings and ``Raw`` opcodes as a zip archive."""
    storages: list[bytes] = []
    body = b"\x80\x02" + _value(tree, storages) + b"."
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", body)
        archive.writestr("archive/byteorder", "little")
        for key, raw in enumerate(storages):
            archive.writestr(f"archive/data/{key}", raw)
    return path


def tensor(
    dtype: str,
    key: int,
    count: int,
    offset: int,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    parameter: bool = False,
) -> Raw:
    """A tensor over storage ``key`` of ``count`` elements, as the opcodes that rebuild it."""
    storage = b"(" + _text("storage") + f"ctorch\n{dtype}\n".encode() + _text(str(key)) + _text("cpu") + _int(count)
    parts = storage + b"tQ" + _int(offset) + _tuple(size) + _tuple(stride) + b"\x89" + _HOOKS
    made = b"ctorch._utils\n_rebuild_tensor_v2\n(" + parts + b"tR"
    return Raw(b"ctorch._utils\n_rebuild_parameter\n(" + made + b"\x88" + _HOOKS + b"tR" if parameter else made)


def _value(x: Any, storages: list[bytes]) -> bytes:
    if isinstance(x, Raw):
        return bytes(x)
    if isinstance(x, np.ndarray):
        storages.append(np.ascontiguousarray(x).tobytes())
        strides = tuple(s // x.itemsize for s in np.ascontiguousarray(x).strides) if x.ndim else ()
        return tensor(_STORAGES[str(x.dtype)], len(storages) - 1, x.size, 0, x.shape, strides)
    if isinstance(x, Mapping):
        items = b"".join(_text(key) + _value(value, storages) for key, value in x.items())
        return b"ccollections\nOrderedDict\n)R(" + items + b"u"
    if isinstance(x, list):
        return b"](" + b"".join(_value(v, storages) for v in x) + b"e"
    return _text(x) if isinstance(x, str) else _int(x) if isinstance(x, int) else b"G" + struct.pack(">d", x)


def _text(x: str) -> bytes:
    return b"X" + struct.pack("<I", len(x.encode())) + x.encode()


def _int(x: int) -> bytes:
    return b"J" + struct.pack("<i", x)


def _tuple(x: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(_int, x)) + b"t"


_HOOKS = b"ccollections\nOrderedDict\n)R"
