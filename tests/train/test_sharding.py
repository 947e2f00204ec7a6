"""Sharding: every parameter has a place and a line in the report; moments and averages follow; fallbacks are told."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from data.errors import UserError
from tests.train.toy import EMAS, SPEC, ToyTask
from train import sharding
from train.mesh import build_mesh
from train.optim import make_optimizer
from train.state import create
from train.trees import flatten


def abstract(**shapes):
    """``a__b=(2, 3)`` -> nested abstract float32 parameters at path a/b."""
    leaves = {name.replace("__", "/"): jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    return sharding.unflatten(leaves)


def mesh_of(**sizes):
    """A mesh of fake devices."""
    return build_mesh(sizes, jax.devices()[: int(np.prod(list(sizes.values())))])


def test_rules_map_logical_axes_to_the_mesh():
    task = ToyTask()
    params = jax.eval_shape(task.init, jax.random.key(0))["params"]
    specs, coverage = sharding.param_specs(task.axes(), params, mesh_of(data=1, fsdp=2, tensor=4))
    assert flatten(specs) == {
        "embed/kernel": P(None, "fsdp"),
        "embed/bias": P("fsdp"),
        "blocks/up/kernel": P(None, "fsdp", "tensor"),
        "blocks/up/bias": P(None, "tensor"),
        "blocks/down/kernel": P(None, "tensor", "fsdp"),
        "out/kernel": P("fsdp"),
    }
    assert not coverage.unmatched and not coverage.unused
    rows = {row.path: row for row in coverage.rows}
    assert rows["blocks/up/kernel"].bytes_per_device == 4 * 2 * 16 * 32 // 8
    assert "blocks/up/kernel    2x16x32  layers,embed,mlp  .,fsdp,tensor  512 B" in coverage.table()


def test_what_does_not_divide_stays_whole_and_is_reported():
    axes = [("a", ("embed", "mlp")), ("big", ("embed", "mel")), ("stack", ("layers", "embed", "mel"))]
    params = abstract(a=(6, 8), big=(1001, 1024), stack=(4, 1001, 999))
    specs, coverage = sharding.param_specs(axes, params, mesh_of(fsdp=4, tensor=2))
    assert flatten(specs) == {"a": P(None, "tensor"), "big": P(None, "fsdp"), "stack": P()}
    notes = {row.path: row.note for row in coverage.rows}
    assert notes["a"] == "embed=6 is not a multiple of fsdp=4"  # small: not worth another split
    assert notes["big"].endswith("fsdp by size")
    assert notes["stack"].endswith("fsdp divides no dimension")  # never the layers


def test_unmatched_parameters_are_split_by_size_and_listed():
    params = abstract(known=(8, 8), new__large=(512, 1024), new__small=(8, 8))
    specs, coverage = sharding.param_specs([("known", ("embed", "mlp")), ("gone", ("embed",))], params, mesh_of(fsdp=8))
    assert flatten(specs) == {"known": P("fsdp"), "new/large": P(None, "fsdp"), "new/small": P()}
    assert coverage.unmatched == ("new/large", "new/small") and coverage.unused == ("gone",)
    assert "no rule matches new/small" in coverage.table() and "rule 'gone' matches no parameter" in coverage.table()


def test_wrong_rules_are_errors():
    with pytest.raises(ValueError, match="gives w the 1 axes"):
        sharding.param_specs([("w", ("embed",))], abstract(w=(8, 8)), mesh_of(fsdp=2))
    with pytest.raises(ValueError, match="logical axis 'embedding'"):
        sharding.param_specs([("w", ("embedding", None))], abstract(w=(8, 8)), mesh_of(fsdp=2))


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "sgd"])
def test_moments_and_averages_follow_their_parameter(optimizer):
    task, mesh = ToyTask(), mesh_of(fsdp=2, tensor=4)
    params = jax.eval_shape(task.init, jax.random.key(0))["params"]
    tx = make_optimizer(type(SPEC)(optimizer=optimizer), params, steps=9, axes=task.axes())
    state = jax.eval_shape(lambda: create(task, tx, seed=0, ema=EMAS))
    specs, _ = sharding.param_specs(task.axes(), params, mesh)
    placed: Any = sharding.state_shardings(state, specs, mesh)
    wanted, followed = flatten(specs), 0
    for tree in (placed.params, placed.opt_state, *placed.ema.values()):
        for path, leaf in flatten(tree).items():
            owner = next((p for p in wanted if path == p or path.endswith("/" + p)), None)
            assert leaf.spec == (wanted[owner] if owner else P()), path
            followed += owner is not None
    assert followed >= len(wanted) * (3 + 1)  # parameters, two averages, at least one moment each
    assert placed.step.spec == P() and jax.tree.structure(placed) == jax.tree.structure(state)


def test_batches_split_rows_and_time():
    mesh = mesh_of(data=2, fsdp=2, sequence=2)
    batch = {"x": np.zeros((8, 6, 3)), "odd": np.zeros((8, 5)), "n": np.zeros(8)}
    specs = {name: s.spec for name, s in sharding.batch_shardings(batch, mesh).items()}
    rows = ("data", "fsdp")
    assert specs == {"x": P(rows, "sequence"), "odd": P(rows), "n": P(rows)}
    with pytest.raises(UserError, match="'x' has 6 rows, which data x fsdp = 4"):
        sharding.batch_shardings({"x": np.zeros((6, 2))}, mesh)
