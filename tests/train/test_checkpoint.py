"""Checkpoints: what goes in comes out, or one says why not."""

import json
import logging
import shutil
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from data.errors import UserError
from train import checkpoint, integrity, trees
from train.checkpoint import CheckpointStore


def _mesh(n):
    return Mesh(np.array(jax.devices()[:n]), ("data",))


def _tree(step, mesh=None):
    mesh = mesh or _mesh(8)
    rows = NamedSharding(mesh, P("data"))
    params = {"dense": {"kernel": jax.device_put(jnp.arange(32.0).reshape(8, 4) * step, rows)}}
    ema = {"0.99": {"dense": {"kernel": jax.device_put(jnp.full((8, 4), step + 0.5), rows)}}}
    bias = jax.device_put(jnp.ones((3,), jnp.bfloat16), NamedSharding(mesh, P()))
    count = jax.device_put(jnp.int32(step), NamedSharding(mesh, P()))
    return {"step": count, "params": params, "stats": {}, "ema": ema, "opt_state": {"all": {"adam": {"mu": bias}}}}


def _abstract(tree, mesh):
    return jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=NamedSharding(mesh, a.sharding.spec)), tree
    )


def _store(tmp_path, steps=(), **policy):
    store = CheckpointStore(tmp_path / "checkpoints", **policy)
    for step in steps:
        store.save(step, _tree(step), {"note": step})
    store.wait()
    return store


def arrays_of(workdir, step=20):
    """Everything that a checkpoint holds, ``{path: array}``."""
    folder = Path(workdir) / "checkpoints" / str(step)
    stored = checkpoint.read_meta(folder)["arrays"]
    tree = trees.unflatten({path: jax.ShapeDtypeStruct(tuple(s), d) for path, (d, s) in stored.items()})
    return {path: np.asarray(a) for path, a in trees.flatten(checkpoint._read(folder, tree)).items()}


def damage(folder, how):
    """Spoils a checkpoint in one of several ways."""
    files = [p for p in (folder / "state").rglob("*") if p.is_file() and p.parent.name == "d"]
    victim = max(files, key=lambda p: p.stat().st_size)
    if how == "flipped byte":
        body = bytearray(victim.read_bytes())
        body[len(body) // 2] ^= 0x10
        victim.write_bytes(body)
    elif how == "truncated file":
        victim.write_bytes(victim.read_bytes()[:-7])
    elif how == "empty folder":
        shutil.rmtree(folder)
        folder.mkdir()
    elif how == "no seal":
        (folder / integrity.SEAL).unlink()
    elif how == "no orbax metadata":
        (folder / "_CHECKPOINT_METADATA").unlink()
    elif how == "seal changed":
        path = folder / integrity.SEAL
        path.write_text(path.read_text().replace('"size": ', '"size": 1', 1))


def test_round_trip_is_exact_and_keeps_dtypes_empty_dicts_and_meta(tmp_path):
    store, tree = _store(tmp_path, [3]), _tree(3)
    restored, meta = store.restore(_abstract(tree, _mesh(8)))
    assert jax.tree.structure(restored) == jax.tree.structure(tree)
    jax.tree.map(np.testing.assert_array_equal, restored, tree)
    assert all(a.dtype == b.dtype for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(tree), strict=True))
    assert meta["step"] == 3 and meta["note"] == 3 and meta["devices"] == 8 and "jax" in meta["versions"]
    assert not store.save(3, tree, {})
    store.close()


@pytest.mark.parametrize("devices", [1, 4])
def test_restores_an_eight_device_checkpoint_on_fewer(tmp_path, devices):
    store, tree = _store(tmp_path, [1]), _tree(1)
    restored, _ = store.restore(_abstract(tree, _mesh(devices)))
    jax.tree.map(np.testing.assert_array_equal, restored, tree)
    assert len(restored["params"]["dense"]["kernel"].sharding.device_set) == devices


def test_buffers_may_be_donated_as_soon_as_save_returns(tmp_path):
    store = CheckpointStore(tmp_path / "checkpoints")
    tree = {"w": jnp.full((1024, 1024), 7.0)}
    overwrite = jax.jit(lambda t: jax.tree.map(lambda a: a * 0 - 1, t), donate_argnums=0)
    store.save(1, tree, {})
    abstract = jax.eval_shape(lambda: tree)
    tree = overwrite(tree)
    store.wait()
    restored, _ = store.restore(abstract)
    assert (np.asarray(restored["w"]) == 7.0).all()


@pytest.mark.parametrize(
    "how", ["flipped byte", "truncated file", "empty folder", "no seal", "no orbax metadata", "seal changed"]
)
def test_a_damaged_newest_step_is_named_set_aside_and_replaced_by_the_one_before(tmp_path, how, caplog):
    store = _store(tmp_path, [4, 8])
    damage(store.folder / "8", how)
    with caplog.at_level(logging.WARNING):
        restored, meta = CheckpointStore(store.folder).restore(_abstract(_tree(4), _mesh(8)))
    assert meta["step"] == 4 and int(restored["step"]) == 4
    assert str(store.folder / "8") in caplog.text and str(store.folder / "4") in caplog.text
    assert (store.folder / "8.damaged").is_dir() and not (store.folder / "8").exists()
    again = CheckpointStore(store.folder)
    assert again.save(8, _tree(8), {})
    again.close()
    assert again.steps() == [4, 8]


def test_all_steps_damaged_is_an_error_not_a_fresh_start(tmp_path):
    store = _store(tmp_path, [4])
    damage(store.folder / "4", "flipped byte")
    with pytest.raises(UserError, match=r"no checkpoint.*can be used.*have changed"):
        store.restore(_abstract(_tree(4), _mesh(8)))
    assert store.exists() and (store.folder / "4").is_dir(), "a second attempt must not start afresh either"
    nothing = CheckpointStore(tmp_path / "nothing")
    assert not nothing.exists()
    with pytest.raises(UserError, match="has no checkpoint"):
        nothing.restore({})


def test_another_model_or_dtype_is_refused_with_the_first_differences(tmp_path):
    store, tree = _store(tmp_path, [1]), _abstract(_tree(1), _mesh(8))
    tree["opt_state"]["all"]["adam"]["mu"] = jax.ShapeDtypeStruct((3,), jnp.float32)
    tree["params"]["dense"]["bias"] = jax.ShapeDtypeStruct((4,), jnp.float32)
    with pytest.raises(UserError) as error:
        store.restore(tree)
    assert "opt_state/all/adam/mu is bfloat16[3] there and float32[3] here" in str(error.value)
    assert "params/dense/bias is not in it" in str(error.value)


def test_variables_only_averages_or_raw(tmp_path):
    _store(tmp_path, [2, 5])
    variables, meta = checkpoint.restore_variables(tmp_path)
    assert meta["step"] == 5 and (np.asarray(variables["params"]["dense"]["kernel"]) == 5.5).all()
    assert variables["stats"] == {}
    abstract = {"params": {"dense": {"kernel": jax.ShapeDtypeStruct((8, 4), jnp.float32)}}, "stats": {}}
    raw, meta = checkpoint.restore_variables(tmp_path, abstract, params="raw", step=2)
    np.testing.assert_array_equal(raw["params"]["dense"]["kernel"], _tree(2)["params"]["dense"]["kernel"])
    with pytest.raises(UserError, match=r"no 'ema/0\.5'; it has raw, ema/0\.99"):
        checkpoint.restore_variables(tmp_path, params="ema/0.5")
    abstract["params"]["dense"]["kernel"] = jax.ShapeDtypeStruct((8, 5), jnp.float32)
    with pytest.raises(UserError, match=r"params/dense/kernel is float32\[8,4\] there and float32\[8,5\] here"):
        checkpoint.restore_variables(tmp_path, abstract)
    with pytest.raises(UserError, match="has no checkpoint"):
        checkpoint.restore_variables(tmp_path / "empty")
    damage(tmp_path / "checkpoints" / "5", "flipped byte")
    assert checkpoint.restore_variables(tmp_path)[1]["step"] == 2
    assert (tmp_path / "checkpoints" / "5").is_dir(), "a reader must not move anything"


def test_keep_policies():
    steps = list(range(0, 100, 10))
    metrics = {step: abs(step - 33) for step in steps[1:]} | {90: float("nan")}
    assert checkpoint.kept(steps, {}, latest=2) == {80, 90}
    assert checkpoint.kept(steps, {}, latest=1, every=40) == {0, 40, 80, 90}
    assert checkpoint.kept(steps, metrics, latest=1, best=2) == {30, 40, 90}
    assert checkpoint.kept(steps, metrics, latest=1, best=1, larger_is_better=True) == {80, 90}


def test_pruning_on_disk_with_a_metric_told_before_or_after_the_save(tmp_path):
    store = CheckpointStore(tmp_path / "checkpoints", keep_latest=1, keep_best=1)
    for step, metric in ((1, 3.0), (2, 1.0), (3, 2.0)):
        if step != 2:
            store.note_metric(step, metric)
        store.save(step, _tree(step), {})
        if step == 2:
            store.note_metric(step, metric)
    store.close()
    assert store.steps() == [2, 3]
    assert sorted(p.name for p in store.folder.iterdir()) == ["2", "3"]


def test_a_failed_save_is_reported_once_and_leaves_the_earlier_ones(tmp_path, monkeypatch):
    store = _store(tmp_path, [1])

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(integrity, "seal", full)
    store.save(2, _tree(2), {})
    while store._failure is None:
        time.sleep(0.01)
    with pytest.raises(checkpoint.CheckpointError, match=r"checkpoints/2 .*No space left.*intact checkpoints: 1"):
        store.check()
    store.check()
    assert [p.name for p in store.folder.iterdir()] == ["1"]
    monkeypatch.undo()
    assert store.restore(_abstract(_tree(1), _mesh(8)))[1]["step"] == 1


def test_too_little_room_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    store = _store(tmp_path, [1])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": 100}))
    with pytest.raises(checkpoint.CheckpointError, match=r"it takes 266 B and the disk has 100 B left.*intact.*: 1;"):
        store.save(2, _tree(2), {})
    assert [p.name for p in store.folder.iterdir()] == ["1"]


def test_unfinished_saves_of_a_killed_run_are_cleared(tmp_path):
    store = _store(tmp_path, [1])
    store.close()
    left = store.folder / "2.orbax-checkpoint-tmp"
    left.mkdir()
    again = CheckpointStore(store.folder)
    assert again.restore(_abstract(_tree(1), _mesh(8)))[1]["step"] == 1
    again.save(2, _tree(2), {})
    again.close()
    assert not left.exists() and again.steps() == [1, 2]


def test_meta_is_plain_json(tmp_path):
    store = _store(tmp_path, [1])
    meta = json.loads((store.folder / "1" / "meta" / "metadata").read_text())
    assert meta["arrays"]["params/dense/kernel"] == ["float32", [8, 4]]
