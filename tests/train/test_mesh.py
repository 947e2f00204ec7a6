"""Mesh sizes: inference, types, and errors that say what to do."""

import jax
import pytest
from jax.sharding import AxisType

from data.errors import UserError
from train import mesh


def test_axes_are_auto_and_complete():
    built = mesh.build_mesh({"fsdp": 4, "data": -1}, jax.devices()[:8])
    assert dict(built.shape) == {"data": 2, "fsdp": 4, "tensor": 1, "sequence": 1}
    assert built.axis_types == (AxisType.Auto,) * 4
    assert mesh.describe(built) == "8 x cpu: data=2 fsdp=4"


@pytest.mark.parametrize(
    ("sizes", "count", "shape"),
    [
        ({}, 8, (8, 1, 1, 1)),
        ({"tensor": 2}, 8, (4, 1, 2, 1)),
        ({"data": 1, "fsdp": -1}, 8, (1, 8, 1, 1)),
        ({"fsdp": -1}, 8, (1, 8, 1, 1)),
        ({"data": 2, "fsdp": 2, "tensor": 2, "sequence": -1}, 16, (2, 2, 2, 2)),
        ({"data": -1, "fsdp": 1, "tensor": 1, "sequence": 1}, 1, (1, 1, 1, 1)),
    ],
)
def test_sizes_are_inferred(sizes, count, shape):
    assert tuple(mesh.resolve(sizes, count).values()) == shape


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"data": 3}, "data=3 does not fill 8 devices"),
        ({"data": 1}, "all sizes 1 does not fill 8 devices"),
        ({"data": -1, "tensor": 3}, "tensor=3 does not fill 8 devices"),
        ({"data": -1, "fsdp": -1}, "only one of data and fsdp"),
        ({"model": 2}, "mesh.model is not an axis"),
        ({"fsdp": 0}, "mesh.fsdp=0"),
    ],
)
def test_mistakes_are_named(sizes, message):
    with pytest.raises(UserError, match=message):
        mesh.resolve(sizes, 8)
