"""Where every array lives: path regex -> logical axes -> mesh axes, with a report that hides nothing.

A model file lists the logical axes of its parameters (``AXES``); the rules here map them to the mesh.  A dimension that
its mesh axes do not divide stays whole and the report says so; a parameter that no regex matches is listed, and split
over ``fsdp`` by size.  Optimiser moments and averages follow their parameter, whose path is a suffix of theirs.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from data.errors import UserError
from train.mesh import BATCH_AXES
from train.state import TrainState
from train.task import AxisRules
from train.trees import flatten, readable, unflatten

Rules = Mapping[str, str | None]

DEFAULT_RULES: Rules = {
    "layers": None,  # scanned over: splitting it would gather every layer from one device
    "embed": "fsdp",
    "mlp": "tensor",
    "heads": "tensor",
    "vocab": "tensor",
    "text": "fsdp",
    "conv": None,
    "mel": None,
    "norm": None,
}

MIN_FSDP_BYTES = 2**20  # below this, gathering costs more than keeping a copy


@dataclasses.dataclass(frozen=True)
class ParamRow:
    """One line of the coverage report."""

    path: str
    shape: tuple[int, ...]
    logical: tuple[str | None, ...] | None  # None: no rule matched
    spec: P
    bytes_per_device: int
    note: str


@dataclasses.dataclass(frozen=True)
class Coverage:
    """What ``param_specs`` decided; ``table()`` is for people."""

    rows: tuple[ParamRow, ...]
    unused: tuple[str, ...]  # regexes that matched nothing

    @property
    def unmatched(self) -> tuple[str, ...]:
        """Paths that no rule matched."""
        return tuple(row.path for row in self.rows if row.logical is None)

    def table(self) -> str:
        """Path, shape, logical axes, mesh axes, bytes per device and remarks of every parameter."""
        cells = [("parameter", "shape", "logical axes", "mesh axes", "per device", "")]
        for row in self.rows:
            logical = "-" if row.logical is None else ",".join(name or "." for name in row.logical)
            shape = "x".join(map(str, row.shape)) or "scalar"
            mesh_axes = ",".join("." if axis is None else str(axis) for axis in row.spec) or "whole"
            cells.append((row.path, shape, logical, mesh_axes, readable(row.bytes_per_device), row.note))
        widths = [max(len(line[i]) for line in cells) for i in range(6)]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in cells]
        lines.append(f"parameters per device: {readable(sum(row.bytes_per_device for row in self.rows))}")
        lines += [f"no rule matches {path}" for path in self.unmatched]
        lines += [f"rule {regex!r} matches no parameter" for regex in self.unused]
        return "\n".join(lines)


def param_specs(
    axes: AxisRules, params: Mapping[str, Any], mesh: Mesh, rules: Rules = DEFAULT_RULES
) -> tuple[dict[str, Any], Coverage]:
    """Partition spec of every parameter and the report.

    Args:
      axes: ``(path regex, logical axis or None per dimension)``; the first regex that matches the whole path counts.
      params: abstract parameters.
      rules: logical axis -> mesh axis.

    Raises:
      ValueError: a rule with the wrong number of dimensions or an unknown logical axis.
    """
    used, rows = set(), []
    for path, leaf in flatten(params).items():
        regex, logical = next(((r, tuple(names)) for r, names in axes if re.fullmatch(r, path)), (None, None))
        used.add(regex)
        if logical is None:
            spec, notes = [None] * leaf.ndim, ["no rule"]
        else:
            spec, notes = _from_rule(path, leaf.shape, logical, mesh, rules)
        split = {axis for axis in spec if axis}
        if mesh.shape["fsdp"] > 1 and "fsdp" not in split and (logical is None or notes):
            notes += _by_size(spec, leaf, logical, mesh)
        size = leaf.size * leaf.dtype.itemsize // math.prod(mesh.shape[axis] for axis in spec if axis)
        while spec and spec[-1] is None:
            spec.pop()
        rows.append(ParamRow(path, tuple(leaf.shape), logical, P(*spec), size, "; ".join(notes)))
    unused = tuple(regex for regex, _ in axes if regex not in used)
    return unflatten({row.path: row.spec for row in rows}), Coverage(tuple(rows), unused)


def _from_rule(
    path: str, shape: Sequence[int], logical: Sequence[str | None], mesh: Mesh, rules: Rules
) -> tuple[list[str | None], list[str]]:
    if len(logical) != len(shape):
        raise ValueError(f"AXES gives {path} the {len(logical)} axes {logical}, but its shape is {tuple(shape)}")
    spec: list[str | None] = []
    notes = []
    for name, size in zip(logical, shape, strict=True):
        if name is not None and name not in rules:
            raise ValueError(f"AXES gives {path} the logical axis {name!r}, which is not among {', '.join(rules)}")
        axis = rules[name] if name is not None else None
        if axis is None or mesh.shape[axis] == 1 or axis in spec:
            spec.append(None)
        elif size % mesh.shape[axis]:
            notes.append(f"{name}={size} is not a multiple of {axis}={mesh.shape[axis]}")
            spec.append(None)
        else:
            spec.append(axis)
    return spec, notes


def _by_size(spec: list[str | None], leaf: Any, logical: Sequence[str | None] | None, mesh: Mesh) -> list[str]:
    """Splits the largest free dimension over fsdp, in place, if that is worth it."""
    if leaf.size * leaf.dtype.itemsize < MIN_FSDP_BYTES:
        return []
    free = [
        (size, -i)
        for i, size in enumerate(leaf.shape)
        if spec[i] is None and size % mesh.shape["fsdp"] == 0 and (logical is None or logical[i] != "layers")
    ]
    if not free:
        return ["fsdp divides no dimension"]
    spec[-max(free)[1]] = "fsdp"
    return ["fsdp by size"]


def state_shardings(abstract: TrainState, specs: Mapping[str, Any], mesh: Mesh) -> TrainState:
    """``NamedSharding`` of every array of the state: moments and averages as their parameter, the rest on every device.

    Args:
      abstract: ``jax.eval_shape`` of the function that makes the state.
      specs: from ``param_specs``; of the parameters, and of such statistics as are too large for every device.
    """
    by_path = {tuple(path.split("/")): spec for path, spec in flatten(specs).items()}
    arrays = flatten(abstract.params) | flatten(abstract.stats)
    shapes = {tuple(path.split("/")): leaf.shape for path, leaf in arrays.items()}

    def leaf(path: Any, x: Any) -> NamedSharding:
        names = tuple(str(getattr(entry, "key", getattr(entry, "name", entry))) for entry in path)
        suffixes = (names[i:] for i in range(len(names)))
        owner = next((s for s in suffixes if s in by_path and shapes[s] == x.shape), None)
        return NamedSharding(mesh, by_path[owner] if owner else P())

    return jax.tree_util.tree_map_with_path(leaf, abstract)


def batch_spec(name: str, shape: Sequence[int], mesh: Mesh) -> P:
    """Rows over ``data`` and ``fsdp``; the second dimension (time) over ``sequence`` where that divides it.

    Raises:
      UserError: the rows do not divide.
    """
    rows = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    if not shape or shape[0] % rows:
        size = shape[0] if shape else "no"
        raise UserError(
            f"batch array {name!r} has {size} rows, which data x fsdp = {rows} devices cannot share evenly; "
            f"make the batch (divided by `accumulate`) a multiple of {rows}"
        )
    sequence = mesh.shape["sequence"]
    if len(shape) > 1 and sequence > 1 and shape[1] % sequence == 0:
        return P(BATCH_AXES, "sequence")
    return P(BATCH_AXES)


def batch_shardings(batch: Mapping[str, Any], mesh: Mesh) -> dict[str, NamedSharding]:
    """Shardings of a global batch given by its arrays or their shapes."""
    return {name: NamedSharding(mesh, batch_spec(name, x.shape, mesh)) for name, x in batch.items()}


def init_sharded(create: Callable[[], TrainState], shardings: TrainState) -> TrainState:
    """Runs ``create`` under ``jit`` with output shardings: no array is ever whole on one device unless it lives so."""
    return jax.jit(create, out_shardings=shardings)()
