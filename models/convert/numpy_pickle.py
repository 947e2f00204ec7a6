"""Reads detectron2's ``.pkl`` checkpoints, pickled dicts of numpy arrays, without running what is in them."""

import codecs
import collections
import pickle
from pathlib import Path
from typing import Any

import numpy as np

_RECONSTRUCT = np.empty(0).__reduce__()[0]  # what numpy itself pickles its arrays with
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("_codecs", "encode"): codecs.encode,  # bytes in pickles that Python 2 can read
    ("collections", "OrderedDict"): collections.OrderedDict,
}


def read_pickle(path: str | Path) -> Any:
    """Nested dicts, lists and scalars with numpy arrays.

    Raises:
      ValueError: a damaged file, or one that holds something else.
    """
    try:
        with open(path, "rb") as stream:
            return _Unpickler(stream, encoding="latin1").load()
    except _Refused as error:
        raise ValueError(
            f"{path} was not read: its pickle asks for {error}, and only numpy arrays and plain containers are allowed"
        ) from None
    except (pickle.UnpicklingError, EOFError, KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} is a damaged pickle ({type(error).__name__}: {error})") from error


class _Refused(Exception):
    """The pickle names something outside the list."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise _Refused(f"{module}.{name}")
        return _ALLOWED[module, name]
