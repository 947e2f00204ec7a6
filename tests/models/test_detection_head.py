"""What the dynamic head must be whatever its weights; that it is the released one, ``tests/launch`` checks."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.detection import head as module
from tests.models import detection

MODEL = detection.head()


@functools.cache
def call(**options):
    model = detection.head(**options)
    run = jax.jit(lambda v, *args: model.apply(v, *args)[0])
    return functools.partial(run, detection.randomised(MODEL))


def arguments():
    _, boxes, time = detection.scene()
    return detection.pyramid(), boxes, time


def test_a_permutation_of_the_boxes_permutes_what_is_found():
    features, boxes, time = arguments()
    order = np.random.default_rng(0).permutation(boxes.shape[1])
    for whole, moved in zip(call()(features, boxes, time), call()(features, boxes[:, order], time), strict=True):
        np.testing.assert_allclose(moved, whole[:, :, order], atol=2e-3 if whole.shape[-1] == 4 else 1e-4)


def test_a_batch_equals_its_images_alone():
    features, boxes, time = arguments()
    whole = call()(features, boxes, time)
    for row in range(2):
        one = slice(row, row + 1)
        alone = call()([level[one] for level in features], boxes[one], time[one])
        for a, b in zip(whole, alone, strict=True):
            np.testing.assert_allclose(a[:, one], b, atol=2e-3 if a.shape[-1] == 4 else 1e-4)


def test_padding_of_the_features_changes_nothing_where_the_size_is_known():
    features, boxes, time = arguments()
    size = np.int32([[48, 64]] * 2)
    padded = [np.pad(a, ((0, 0), (0, 4 - i), (0, 6 - i), (0, 0)), constant_values=9.0) for i, a in enumerate(features)]
    for a, b in zip(call()(features, boxes, time), call()(padded, boxes, time, size), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-3 if a.shape[-1] == 4 else 1e-4)


@pytest.mark.slow
def test_recomputation_changes_no_gradient():
    """And every gradient is finite, that of boxes at the borders too."""
    features, boxes, time = arguments()
    boxes[:, 0], variables, wanted = [[0, 0, 0, 0], [-9, -9, 80, 80]], detection.randomised(MODEL), None
    for options in ({}, {"remat": "full"}):
        model = detection.head(**options)

        def loss(v, features, model=model):
            logits, found = model.apply(v, features, boxes, time)[0]
            return jnp.tanh(logits).sum() + jnp.tanh(found / 40).sum()

        got = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(variables, features)
        wanted = got if wanted is None else wanted
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
            assert np.isfinite(a).all()
            np.testing.assert_allclose(a, b, atol=1e-3 * max(np.abs(b).max(), 1e-2))


def test_stages_unrolled_are_the_same():
    for a, b in zip(call()(*arguments()), call(scan_layers=False)(*arguments()), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-3 if a.shape[-1] == 4 else 1e-4)


def test_stages_follow_upon_each_other_and_boxes_pass_no_gradient():
    """The last stage alone, given what the second left, finds what the whole found; and what it was given as boxes is
    a constant to it."""
    features, boxes, time = arguments()
    variables = detection.randomised(MODEL)
    whole, _ = jax.jit(functools.partial(MODEL.apply, method="parts", keep_layers=True))(
        variables, features, boxes, time
    )
    last = detection.head(stages=1)
    params = variables["params"] | {"stages": jax.tree.map(lambda a: a[2:], variables["params"]["stages"])}
    run = jax.jit(functools.partial(last.apply, method="parts"))
    alone, _ = run({"params": params, "stats": {}}, features, whole["boxes"][1], time, None, whole["objects"][1])
    np.testing.assert_allclose(alone["logits"][0], whole["logits"][2], atol=1e-4)
    np.testing.assert_allclose(alone["boxes"][0], whole["boxes"][2], atol=2e-3)
    slope = jax.jit(lambda *b: jax.jvp(lambda b: MODEL.apply(variables, features, b, time)[0][0], *b)[1])
    assert not np.any(slope((boxes,), (np.ones_like(boxes),)))


def test_a_fresh_classifier_expects_little_and_nothing_else_is_biased():
    """Also with four classes, where the boxes' layer has a bias of the same shape."""
    params = jax.jit(detection.head(num_classes=4).init)(jax.random.key(0))["params"]["stages"]
    np.testing.assert_allclose(params["logits"]["bias"], -math.log(99), rtol=1e-6)
    assert np.abs(params["deltas"]["bias"]).max() < 0.5
    bound = math.sqrt(6 / (4 * 16))  # of q, k, v as parts of one matrix
    assert 0.9 * bound < np.abs(params["attn"]["q"]["kernel"]).max() <= bound


def test_compute_type_leaves_parameters_and_results_wide():
    features, boxes, time = arguments()
    narrow, wanted = call(dtype=jnp.bfloat16)(features, boxes, time), call()(features, boxes, time)
    assert all(a.dtype == jnp.float32 for a in narrow)
    assert all(a.dtype == jnp.float32 for a in jax.tree.leaves(detection.head(dtype=jnp.bfloat16).abstract()))
    assert np.abs(narrow[0][0] - wanted[0][0]).max() < 0.1 * np.abs(wanted[0][0]).max()


def test_axes_cover_every_parameter_once():
    detection.check_axes(module.AXES, MODEL.abstract()["params"])


def test_bad_options_are_named():
    features, boxes, time = arguments()
    for options, message in (({"activation": "tanh"}, "activation"), ({"heads": 3}, "3 attention heads")):
        with pytest.raises(ValueError, match=message):
            detection.head(**options).abstract()
    with pytest.raises(ValueError, match="1 levels of features"):
        jax.eval_shape(lambda v: MODEL.apply(v, features[:1], boxes, time), MODEL.abstract())
