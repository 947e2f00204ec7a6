"""Nested dicts of arrays addressed by path: ``"blocks/attn/q/kernel"``.

Every path regex in the project (sharding rules, optimiser groups, weight decay, precision) must match the whole path.
"""

from collections.abc import Callable, Mapping
from typing import Any

from flax import traverse_util


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """``{path: leaf}`` in the tree's own (sorted by JAX, here insertion) order."""
    return {"/".join(path): leaf for path, leaf in traverse_util.flatten_dict(dict(tree)).items()}


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Inverse of ``flatten``."""
    return traverse_util.unflatten_dict({tuple(path.split("/")): leaf for path, leaf in flat.items()})


def map_with_path(fn: Callable[[str, Any], Any], tree: Mapping[str, Any]) -> dict[str, Any]:
    """The tree with ``fn(path, leaf)`` in place of each leaf."""
    return unflatten({path: fn(path, leaf) for path, leaf in flatten(tree).items()})


def readable(count: float, unit: str = "B") -> str:
    """``readable(3_400_000) == "3.4 MB"``: for reports."""
    for prefix in ("", "k", "M", "G", "T", "P"):
        if abs(count) < 1000 or prefix == "P":
            return f"{count:.3g} {prefix}{unit}"
        count /= 1000
    raise AssertionError
