"""The vocoder task: two sides that do not touch each other's parameters, rows that count alone, and waves learned."""

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import vocos
from data.audio import MelSpec, save_mel, save_wav
from data.errors import UserError
from models.vocoders.discriminators import fold
from train import trees
from train.accumulate import gradients
from train.assemble import RunConfig, assemble, build_data, plain
from train.checkpoint import CheckpointStore, restore_variables
from train.components import bind, call
from train.mesh import build_mesh
from train.objectives import adversarial
from train.run import train
from train.step import make_train_step
from train.task import StepContext
from train.tasks.vocoder import VocoderTask
from train.workdir import write_assets

SPEC = MelSpec("vocos", 8000, 256, 64, 256, 20)
SAMPLES = 2048
KEY = jax.random.key(0)


def make_task(folder: Path, **options) -> VocoderTask:
    """A few thousand parameters on both sides."""
    folder.mkdir(exist_ok=True)
    save_mel(folder, SPEC)
    model = bind({"type": "models.vocoders.vocos:Vocos", "dim": 16, "hidden": 32, "depth": 2}, "model")
    small = {
        "periods": (2, 3), "period_channels": (4, 4), "resolutions": (128,), "resolution_channels": 2,
        "stft_weight": 5.0,
    }  # fmt: skip
    shapes = [{"wave": jax.ShapeDtypeStruct((2, SAMPLES), jnp.float32)}]
    return VocoderTask(model, folder, shapes, **(small | options))


def make_batch(rows: int = 2) -> dict[str, np.ndarray]:
    """Gliding tones in noise."""
    t, r = np.arange(SAMPLES) / SPEC.sample_rate, np.random.default_rng(0)
    waves = [
        0.3 * np.sin(2 * np.pi * (200 + 150 * i) * t * (1 + t)) + 0.02 * r.normal(size=SAMPLES) for i in range(rows)
    ]
    return {
        "wave": np.array(waves, np.float32),
        "index": np.arange(rows, dtype=np.int32),
        "mask": np.ones(rows, np.float32),
    }


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> VocoderTask:
    return make_task(tmp_path_factory.mktemp("task") / "assets")


@pytest.fixture(scope="module")
def variables(task):
    return jax.jit(task.init)(KEY)


@pytest.fixture(scope="module")
def gradient(task, variables):
    """``gradient(batch, terms)``: of the sum of those terms (all, if None), by path; and every term's value."""

    def total(params, batch, names):
        out = task.loss({"params": params, "stats": {}}, batch, KEY, StepContext(jnp.int32(5), {}))
        values = {n: t.coefficient * t.sum / t.weight for n, t in out.terms.items()}
        return sum(v * names.get(n, 0.0) for n, v in values.items()), values

    run = jax.jit(jax.grad(total, has_aux=True))
    everything = [f"{a}_{b}" for a in ("fool", "match", "tell") for b in ("period", "resolution")] + ["mel", "stft"]

    def of(batch, names=None):
        weights = {n: jnp.float32(names is None or n in names) for n in everything}
        grads, values = run(variables["params"], batch, weights)
        assert set(values) == set(everything)
        return trees.flatten(grads), values

    return of


@pytest.mark.parametrize("side", ["generator", "discriminators"])
def test_no_gradient_reaches_the_other_side(gradient, side):
    """Exactly: not small, but zero."""
    tell = ["tell_period", "tell_resolution"]
    others = ["fool_period", "fool_resolution", "match_period", "match_resolution", "mel", "stft"]
    grads, _ = gradient(make_batch(), others if side == "generator" else tell)
    for path, value in grads.items():
        if path.split("/")[0] == side:
            if side == "discriminators" and path.endswith("bias"):
                continue  # a bias adds to both sides of the hinge and may cancel while neither is satisfied
            assert np.any(np.asarray(value)), f"{path} learns nothing"
        else:
            assert not np.any(np.asarray(value)), f"{path} is reached"


def test_each_sides_gradient_is_its_own_terms_gradient(gradient):
    whole, _ = gradient(make_batch())
    tell, _ = gradient(make_batch(), ["tell_period", "tell_resolution"])
    for path, value in whole.items():
        if path.startswith("discriminators/"):
            np.testing.assert_allclose(value, tell[path], rtol=1e-5, atol=1e-9)


def test_rows_without_weight_count_nothing(task, variables):
    def run(batch, parts=1):
        loss = lambda p, s, b: task.loss({"params": p, "stats": s}, b, KEY, StepContext(jnp.int32(5), {}))  # noqa: E731
        return jax.jit(lambda p, b: gradients(loss, p, {}, b, microbatches=parts).grads)(variables["params"], batch)

    batch = make_batch(4)
    batch["mask"] = np.array([1, 1, 0, 0], np.float32)
    padded, alone, parts = run(batch), run(make_batch(2)), run(make_batch(4), 2)
    whole = run(make_batch(4))
    for a, b in ((padded, alone), (parts, whole)):
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
            np.testing.assert_allclose(x, y, rtol=0, atol=2e-3 * np.abs(y).max() + 1e-6)


def test_discriminators_wait_for_their_step(tmp_path, variables, gradient):
    late = make_task(tmp_path / "assets", adversarial_from=5)

    @jax.jit
    def run(step):
        out = late.loss(variables, make_batch(), KEY, StepContext(step, {}))
        return {name: t.coefficient * t.sum / t.weight for name, t in out.terms.items()}

    _, now = gradient(make_batch())
    before, after = run(4), run(5)
    for name, value in now.items():
        np.testing.assert_allclose(after[name], value, rtol=1e-5)
        if "_" in name:
            assert before[name] == 0 and value != 0
        else:
            np.testing.assert_allclose(before[name], value, rtol=1e-5)
    alone = make_task(tmp_path / "alone", adversarial_from=-1)
    assert set(alone.abstract()["params"]) == {"generator"}


def test_weights_of_the_terms_follow_the_release(tmp_path):
    task = make_task(tmp_path / "assets")
    out = jax.eval_shape(lambda: task.loss(task.init(KEY), make_batch(), KEY, StepContext(jnp.int32(0), {})).terms)
    names = {name: task._coefficient(name) for name in out}
    assert names == {
        "mel": 45.0, "stft": 5.0, "fool_period": 1.0, "match_period": 1.0, "tell_period": 1.0,
        "fool_resolution": 0.1, "match_resolution": 0.1, "tell_resolution": 1.0,
    }  # fmt: skip


def test_the_adversarial_losses_by_hand():
    """One discriminator whose verdict is p times the mean: every loss and gradient is known."""

    def judge(p, wave):
        return {"period": [[p * wave, p * wave.mean(1, keepdims=True)]], "resolution": []}

    def losses(p, made):
        return {name: value[0] for name, value in adversarial.losses(judge, p, made, jnp.full((1, 4), 2.0)).items()}

    made = jnp.full((1, 4), -0.5)
    assert losses(1.0, made) == {"fool_period": 1.5, "match_period": 2.5, "tell_period": 0.5}
    gradients = jax.jit(jax.jacobian(losses, (0, 1)))(jnp.float32(1.0), made)
    tell, fool = gradients["tell_period"], gradients["fool_period"]
    assert tell[0] == -0.5 and not np.any(tell[1]), "the discriminator sees the made wave as data"
    assert fool[0] == 0 and np.all(np.asarray(fool[1]) == -0.25), "the generator sees the discriminator as constant"


def test_folding_shows_every_sample_once():
    wave = jnp.arange(12.0)[None]
    np.testing.assert_array_equal(fold(wave, 3)[..., 0], [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]])
    np.testing.assert_array_equal(fold(wave, 5)[3, :, 0], [3, 8, 9])  # ... 10, 11 | 10, 9, 8: reflected


def test_it_learns_two_waves_by_heart_with_both_sides_at_work(task):
    from train import state as states
    from train.optim import OptimSpec, make_optimizer

    group = {"discriminators": {"match": "discriminators/.*", "b2": 0.9, "clip_norm": 1.0}}
    spec = OptimSpec(lr=1e-2, b1=0.8, b2=0.95, schedule="constant")
    optimizer = make_optimizer(spec, task.abstract()["params"], steps=150, groups=group, axes=task.axes())
    state = jax.jit(lambda: states.create(task, optimizer, seed=0))()
    step, batch = jax.jit(make_train_step(task, optimizer, seed=0)), make_batch()
    before = jax.jit(task.evaluate)(state.variables(), batch, KEY)
    for _ in range(150):
        state, metrics = step(state, batch)
    after = jax.jit(task.evaluate)(state.variables(), batch, KEY)
    for name in ("mel", "stft"):
        assert after[name][0] < 0.5 * before[name][0], (name, before[name], after[name])
    assert "grad_norm/discriminators" in metrics and "grad_norm/default" in metrics


def test_a_network_that_makes_another_number_of_samples_is_refused(tmp_path):
    (tmp_path / "assets").mkdir()
    save_mel(tmp_path / "assets", SPEC)
    model = bind({"type": "models.vocoders.vocos:Vocos", "dim": 8, "hidden": 8, "depth": 1, "padding": "same"}, "model")
    shapes = [{"wave": jax.ShapeDtypeStruct((2, SAMPLES), jnp.float32)}]
    with pytest.raises(UserError, match=r"of 2048 samples it makes 2112.*padding 'center'"):
        VocoderTask(model, tmp_path / "assets", shapes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Six clips of noise in LJSpeech layout."""
    out, lines = tmp_path_factory.mktemp("speech"), ["id|text|split"]
    for i in range(6):
        save_wav(out / "wavs" / f"{i}.wav", 0.1 * np.random.default_rng(i).standard_normal(20_000), 24_000)
        lines.append(f"{i}|clip {i}|{'eval' if i > 4 else 'train'}")
    (out / "metadata.csv").write_text("\n".join(lines))
    return out


@pytest.mark.parametrize("variant", vocos.VARIANTS)
def test_variant_builds_abstractly(variant, folder, tmp_path):
    config = vocos.get_config(variant)
    config.data.dir = str(folder)
    run = call(RunConfig, json.loads(json.dumps(plain(config))), "")
    mesh = build_mesh({"data": 2, "fsdp": 1, "tensor": 4, "sequence": 1})
    data = build_data(run, mesh)
    parts = assemble(run, mesh, data.shapes, write_assets(tmp_path, data.write_assets, check=False))
    found = re.search(r"sharding rules cover (\d+) of (\d+)", parts.summary)
    assert found and found[1] == found[2], parts.summary


@pytest.mark.slow
def test_a_run_goes_on_where_it_stopped(folder, tmp_path):
    config = plain(vocos.get_config("tiny"))
    config["data"]["dir"], config["mesh"] = str(folder), {"data": 2, "fsdp": 1, "tensor": 4, "sequence": 1}
    config["steps"], config["sample"]["every"], config["evaluation"]["every"] = 4, 4, 4
    config["optim"]["schedule"] = "constant"
    assert train(config, tmp_path / "whole") is None
    assert train(config | {"steps": 2}, tmp_path / "parts") is None
    assert train(config, tmp_path / "parts", allow_config_change=True) is None
    whole, parts = (restore_variables(tmp_path / name, params="raw")[0] for name in ("whole", "parts"))
    jax.tree.map(np.testing.assert_array_equal, whole, parts)
    assert len(list((tmp_path / "whole" / "samples" / "4").glob("*.wav"))) == 4  # two crops and what they were
    assert '"stft"' in (tmp_path / "whole" / "metrics.jsonl").read_text()


def test_fine_tuning_begins_with_a_vocoder_that_has_no_discriminators(folder, tmp_path):
    config = vocos.get_config("tiny")
    config.data.dir = str(folder)
    run = call(RunConfig, json.loads(json.dumps(plain(config))), "")
    mesh = build_mesh({"data": 2, "fsdp": 1, "tensor": 4, "sequence": 1})
    data = build_data(run, mesh)
    parts = assemble(run, mesh, data.shapes, write_assets(tmp_path / "new", data.write_assets, check=False))
    r = np.random.default_rng(0)
    abstract = parts.abstract.params["generator"]
    released = jax.tree.map(lambda a: r.normal(size=a.shape).astype(np.float32), abstract)
    store = CheckpointStore(tmp_path / "released" / "checkpoints")
    store.save(0, {"params": {"generator": released}, "stats": {}}, {"evaluate_with": "raw"})
    store.close()
    found, _ = restore_variables(tmp_path / "released", parts.origin, optional=parts.optional)
    state = parts.create(found)
    jax.tree.map(np.testing.assert_array_equal, state.params["generator"], released)
    assert all(np.asarray(a).any() for p, a in trees.flatten(state.params).items() if p.endswith("kernel"))
    assert jax.tree.structure(state.params) == jax.tree.structure(parts.abstract.params)

    (tmp_path / "other").mkdir()
    save_mel(tmp_path / "other", SPEC)
    with pytest.raises(UserError, match=r"trained with mel\.sample_rate=8000"):
        parts.check_assets(tmp_path / "other")
