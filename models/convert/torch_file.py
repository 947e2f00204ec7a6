"""Reads PyTorch checkpoints (``.pt``, ``.bin``) without PyTorch and without running what is in them.

A checkpoint is a zip archive: ``<name>/data.pkl``, a pickle, and ``<name>/data/<key>``, the raw numbers.  A pickle may
call anything that can be imported; this reader knows tensors and plain containers, and refuses the rest by name.
"""

import collections
import math
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

_STORAGES: dict[str, str] = {
    "DoubleStorage": "<f8", "FloatStorage": "<f4", "HalfStorage": "<f2", "BFloat16Storage": "bfloat16",
    "LongStorage": "<i8", "IntStorage": "<i4", "ShortStorage": "<i2", "CharStorage": "i1", "ByteStorage": "u1",
    "BoolStorage": "?",
}  # fmt: skip


class _StorageType(NamedTuple):
    """A storage class of PyTorch, of which only the element type matters."""

    dtype: str


def read_torch(path: str | Path) -> Any:
    """What ``torch.save`` wrote: nested dicts, lists, tuples and scalars, with numpy arrays in place of tensors.

    bfloat16 becomes float32, which holds it exactly; the arrays are read-only.

    Raises:
      ValueError: not such a file, a damaged one, or one that holds something else than tensors and plain containers.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            if len(names) != 1:
                raise ValueError(f"{path} is not a PyTorch checkpoint: a zip archive without data.pkl")
            root = names[0].removesuffix("data.pkl")
            order = f"{root}byteorder"
            if order in archive.namelist() and archive.read(order).strip() != b"little":
                raise ValueError(f"{path} was written by a big-endian machine; save it again on a usual one")
            with archive.open(names[0]) as stream:
                return _Unpickler(stream, lambda key: archive.read(f"{root}data/{key}")).load()
    except zipfile.BadZipFile as error:
        raise ValueError(
            f"{path} is not a PyTorch checkpoint ({error}); expected what torch.save writes since version 1.6"
        ) from error
    except _Refused as error:
        raise ValueError(
            f"{path} was not read: its pickle asks for {error}, and only tensors and plain containers are allowed; "
            "save its state dict alone"
        ) from None
    except (pickle.UnpicklingError, EOFError, KeyError, IndexError, TypeError, AttributeError, MemoryError) as error:
        raise ValueError(f"{path} is a damaged PyTorch checkpoint ({type(error).__name__}: {error})") from error


class _Refused(Exception):
    """The pickle names something outside the list."""


class _Unpickler(pickle.Unpickler):
    def __init__(self, stream: Any, storage: Callable[[str], bytes]):
        super().__init__(stream)
        self._storage = storage
        self._read: dict[str, np.ndarray] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _STORAGES:
            return _StorageType(_STORAGES[name])
        known = _ALLOWED.get((module, name))
        if known is None:
            raise _Refused(f"{module}.{name}")
        return known

    def persistent_load(self, pid: Any) -> np.ndarray:
        """A storage, ("storage", type, key, device, count) -> [count]."""
        kind, storage, key, _, count = pid
        if kind != "storage" or not isinstance(storage, _StorageType):
            raise _Refused(f"a persistent object of kind {kind!r}")
        if key not in self._read:
            raw = self._storage(str(key))
            if storage.dtype == "bfloat16":  # the upper half of a float32
                numbers = (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
            else:
                numbers = np.frombuffer(raw, storage.dtype)
            numbers.setflags(write=False)
            self._read[key] = numbers
        if len(self._read[key]) < count:
            raise pickle.UnpicklingError(f"storage {key} holds {len(self._read[key])} numbers, {count} expected")
        return self._read[key]


def _tensor(storage: Any, offset: int, size: Any, stride: Any, *rest: Any) -> np.ndarray:
    """A view of a storage; one that would reach outside is refused."""
    del rest  # gradient flag, hooks, metadata
    size, stride = tuple(map(int, size)), tuple(map(int, stride))
    if not isinstance(storage, np.ndarray) or storage.ndim != 1 or len(size) != len(stride):
        raise pickle.UnpicklingError("a tensor without a storage")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if 0 in size:
        return np.zeros(size, storage.dtype)
    if min((offset, *size, *stride)) < 0 or last >= len(storage) or math.prod(size) > len(storage):
        raise pickle.UnpicklingError(f"a tensor of shape {size} reaches outside its storage")
    steps = [storage.itemsize * step for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], size, steps, writeable=False)


def _parameter(data: np.ndarray, *rest: Any) -> np.ndarray:
    del rest
    return data


_ALLOWED: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch", "Size"): tuple,
    ("collections", "OrderedDict"): collections.OrderedDict,
}
