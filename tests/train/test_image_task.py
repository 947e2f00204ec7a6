"""Images: every variant learns one step, padding rows count nothing, classes and targets are where they belong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits_flow
from data.digits import load_split
from data.errors import UserError
from data.images import save_statistics
from tests.train.digits import make
from train.task import StepContext


@pytest.fixture(scope="module")
def assets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("assets")
    save_statistics(folder, load_split("train")[0], 10)
    return folder


def batch(rows=6):
    images, labels = load_split("train")
    return {
        "image": jnp.asarray(images[:rows]),
        "label": jnp.asarray(labels[:rows]),
        "index": jnp.arange(rows, dtype=jnp.int32),
        "mask": jnp.ones(rows),
    }


def context(variables, step=5, teacher=None):
    averages = {name: variables["params"] for name in ("0.95", "0.999", "0.9999")}
    return StepContext(jnp.int32(step), averages, teacher)


def total(task, ctx):
    def loss(params, data):
        terms = task.loss({"params": params, "stats": {}}, data, jax.random.key(2), ctx).terms
        return sum(term.coefficient * term.sum for term in terms.values()), terms

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


QUICK = ("flow", "mean_flow")  # the others compile for as long each


@pytest.mark.parametrize(
    "variant",
    [v if v in QUICK else pytest.param(v, marks=pytest.mark.slow) for v in digits_flow.VARIANTS if v != "weak"],
)
def test_a_loss_is_finite_teaches_every_part_and_ignores_padding(variant, assets):
    task, variables = make(variant, assets, **({"teacher": "somewhere"} if variant == "cd" else {}))
    ctx = context(variables, teacher=variables if variant == "cd" else None)
    step = total(task, ctx)
    data = batch()
    (value, terms), grads = step(variables["params"], data)
    assert np.isfinite(value) and float(sum(t.weight for t in terms.values())) == 6.0
    dead = [
        jax.tree_util.keystr(path) for path, g in jax.tree_util.tree_leaves_with_path(grads) if not np.abs(g).max() > 0
    ]
    # Keys' biases move no softmax; MeanFlow's and sCM's nets may have single units without effect, not whole arrays.
    assert all("'k'" in path and "bias" in path for path in dead), dead
    padded = data | {"mask": data["mask"].at[3:].set(0.0), "image": data["image"].at[3:].set(0.3)}
    (fewer, terms), _ = step(variables["params"], padded)
    (other, _), _ = step(variables["params"], padded | {"image": padded["image"].at[3:].set(-1.0)})
    assert float(sum(t.weight for t in terms.values())) == 3.0 and float(fewer) == float(other)


def test_denoiser_uses_its_labels_and_scales_its_images(assets):
    task, variables = make("flow", assets)
    denoise = jax.jit(lambda x, t, labels: task.denoiser(variables)(x, t, labels).value)
    x = jax.random.normal(jax.random.key(0), (3, 8, 8, 1))
    some, other = (denoise(x, jnp.float32(0.4), jnp.asarray(labels)) for labels in ([1, 2, 10], [1, 3, 10]))
    np.testing.assert_array_equal(some[jnp.array([0, 2])], other[jnp.array([0, 2])])
    assert np.abs(some[1] - other[1]).max() > 1e-4
    images = jnp.asarray(load_split("train")[0])
    scaled = task.normalise(images)
    assert float(scaled.mean()) == pytest.approx(0.0, abs=1e-4) and float(scaled.std()) == pytest.approx(1.0, abs=1e-4)
    np.testing.assert_allclose(task.denormalise(scaled), images, atol=1e-5)


def test_dropped_classes_are_as_many_as_asked_and_belong_to_their_rows(assets):
    task, _ = make("flow", assets, label_drop=0.3)
    key, index = jax.random.key(5), jnp.arange(4000)
    dropped = task._dropped(key, index)
    assert float(dropped.mean()) == pytest.approx(0.3, abs=0.03)
    np.testing.assert_array_equal(task._dropped(key, index[7:9]), dropped[7:9])


def test_targets_come_from_the_average_that_is_named(assets):
    task, variables = make("ct", assets)
    data, step = batch(), jnp.int32(5)
    other = jax.tree.map(lambda p: 1.5 * p, variables["params"])

    def loss(average):
        ctx = StepContext(step, {"0.9999": average}, None)
        return sum(t.sum for t in task.loss(variables, data, jax.random.key(2), ctx).terms.values())

    loss = jax.jit(loss)
    assert float(loss(other)) != float(loss(variables["params"]))
    with pytest.raises(UserError, match=r"none of config\.ema\.decays \(0\.5\)"):
        task.loss(variables, data, jax.random.key(2), StepContext(step, {"0.5": other}, None))


@pytest.mark.slow
def test_the_teacher_is_asked(assets):
    task, variables = make("cd", assets, teacher="somewhere")
    data = batch()

    def loss(teacher):
        ctx = context(variables, teacher=teacher)
        return sum(t.sum for t in task.loss(variables, data, jax.random.key(2), ctx).terms.values())

    loss = jax.jit(loss)
    other = jax.tree.map(lambda p: 1.5 * p, variables)
    assert float(loss(variables)) != float(loss(other))


def test_configs_that_mean_nothing_are_errors(assets):
    with pytest.raises(UserError, match="learns from a teacher"):
        make("cd", assets)
    with pytest.raises(UserError, match=r"config\.task\.objective: prediction must be one of"):
        make("flow", assets, objective={"type": "train.objectives.denoising:Denoising", "prediction": "F"})
    with pytest.raises(UserError, match="share of the rows"):
        make("flow", assets, label_drop=2.0)
    task, _ = make("flow", assets)
    with pytest.raises(UserError, match="MeanFlow and Shortcut do"):
        task.average_velocity({})
