"""The one mesh: axes ``data``, ``fsdp``, ``tensor``, ``sequence``; sizes of one cost nothing.

``data`` copies parameters, ``fsdp`` splits them, and both split the batch; ``tensor`` splits heads and hidden layers;
``sequence`` splits time.  Axis types are Auto: XLA propagates shardings and modules carry no annotations
(``jax.make_mesh`` has defaulted to Explicit since jax 0.9).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh

from data.errors import UserError

AXES = ("data", "fsdp", "tensor", "sequence")
BATCH_AXES = ("data", "fsdp")


def build_mesh(sizes: Mapping[str, int] | None = None, devices: Sequence[Any] | None = None) -> Mesh:
    """Mesh over all devices (or the given ones).

    Args:
      sizes: size of each axis, at most one of them -1 for "what is left"; missing axes are 1, except that ``data`` is
        -1 when no axis is.
      devices: defaults to ``jax.devices()``.

    Raises:
      UserError: unknown axis, or sizes whose product is not the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    shape = resolve(sizes or {}, len(devices))
    return jax.make_mesh(tuple(shape.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def resolve(sizes: Mapping[str, int], count: int) -> dict[str, int]:
    """Sizes of all four axes for ``count`` devices, in order."""
    for name, size in sizes.items():
        if name not in AXES:
            raise UserError(f"mesh.{name} is not an axis; the axes are {', '.join(AXES)}")
        if size != -1 and size < 1:
            raise UserError(f"mesh.{name}={size}: a size is at least 1, or -1 for what is left")
    shape = {name: sizes.get(name, 1) for name in AXES}
    if "data" not in sizes and -1 not in shape.values():
        shape["data"] = -1
    free = [name for name, size in shape.items() if size == -1]
    if len(free) > 1:
        raise UserError(f"mesh: only one of {' and '.join(free)} can be -1")
    known = math.prod(size for size in shape.values() if size != -1)
    if count % known or (not free and known != count):
        given = " x ".join(f"{name}={size}" for name, size in shape.items() if size not in (1, -1)) or "all sizes 1"
        raise UserError(f"mesh: {given} does not fill {count} devices; make the product {count} or set one size to -1")
    if free:
        shape[free[0]] = count // known
    return shape


def describe(mesh: Mesh) -> str:
    """``"8 x cpu: data=2 fsdp=4"``."""
    used = " ".join(f"{name}={size}" for name, size in mesh.shape.items() if size > 1) or "one device"
    return f"{mesh.size} x {mesh.devices.flat[0].device_kind}: {used}"
