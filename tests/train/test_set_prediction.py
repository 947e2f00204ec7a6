"""The set loss against the golden numbers and their gradients; counts, padding and federated classes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.train.detection import GOLDEN, targets_of
from train.objectives.matching import Hungarian, Targets
from train.objectives.set_prediction import SetPrediction, federated, focal_loss

NAMES = {"class": "loss_ce", "l1": "loss_bbox", "giou": "loss_giou"}


@pytest.fixture(scope="module")
def stored():
    return dict(np.load(GOLDEN / "losses.npz"))


def value(loss):
    """Terms as the step adds them up, without and with coefficients."""
    plain = {name: term.sum / term.weight for name, term in loss.items()}
    return plain, sum(term.coefficient * plain[name] for name, term in loss.items())


def golden_name(name):
    kind, _, stage = name.partition("_")
    return NAMES[kind] + (f"_{stage}" if stage else "")


def test_values_and_gradients_are_the_release_s(stored):
    loss, rows = SetPrediction(count="release"), jnp.ones(8)

    def total(logits, boxes):
        plain, whole = value(loss(logits, boxes, targets_of(stored), rows))
        return whole, plain

    step = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))
    (whole, plain), gradients = step(stored["logits"], stored["pred_boxes"])
    np.testing.assert_allclose(whole, stored["total_weighted"], rtol=1e-5)
    for name, number in plain.items():
        np.testing.assert_allclose(number, stored[golden_name(name)], rtol=1e-4, err_msg=name)
    for got, name in zip(gradients, ("grad_logits", "grad_boxes"), strict=True):
        np.testing.assert_allclose(got, stored[name], rtol=1e-3, atol=1e-4 * np.abs(stored[name]).max())


def test_federated_classes_mask_only_the_classes(stored):
    judged = jnp.zeros((8, 5)).at[:, stored["fed_classes"]].set(1)
    terms = jax.jit(SetPrediction(count="release"))(
        stored["logits"], stored["pred_boxes"], targets_of(stored), jnp.ones(8), judged
    )
    plain, _ = value(terms)
    for name in ("class", "class_0"):
        np.testing.assert_allclose(plain[name], stored[f"fed_{golden_name(name)}"], rtol=1e-4)
    np.testing.assert_allclose(plain["l1"], stored["loss_bbox"], rtol=1e-4)


@pytest.mark.parametrize("count", ["targets", "matched"])
def test_parts_of_a_batch_add_up_and_padding_counts_nothing(stored, count):
    """Sums and weights are additive over images; a row of padding and columns of padding add nothing."""
    loss = jax.jit(SetPrediction(count=count))
    logits, boxes, targets = stored["logits"], stored["pred_boxes"], targets_of(stored)
    whole = loss(logits, boxes, targets, jnp.ones(8))
    halves = [
        loss(logits[:, part], boxes[:, part], Targets(*(a[part] for a in targets)), jnp.ones(4))
        for part in (slice(0, 8, 2), slice(1, 8, 2))
    ]
    for name, term in whole.items():
        for kind in ("sum", "weight"):
            parts = sum(getattr(half[name], kind) for half in halves)
            np.testing.assert_allclose(parts, getattr(term, kind), rtol=1e-5, err_msg=name)
    rows = jnp.arange(8) % 2 == 0
    for name, term in loss(logits, boxes, targets, rows.astype(jnp.float32)).items():
        np.testing.assert_allclose(term.sum, halves[0][name].sum, rtol=1e-5)
        assert term.weight == halves[0][name].weight


def test_a_batch_without_targets_weighs_like_any_other(stored):
    """The release divides by one: its class loss here is tens of times that of images with targets."""
    empty = targets_of(stored)._replace(valid=np.zeros((8, 6), bool))
    plain, _ = value(jax.jit(SetPrediction())(stored["logits"], stored["pred_boxes"], empty, jnp.ones(8)))
    released, _ = value(
        jax.jit(SetPrediction(count="release"))(stored["logits"], stored["pred_boxes"], empty, jnp.ones(8))
    )
    np.testing.assert_allclose(released["class"], stored["empty_loss_ce"], rtol=1e-4)
    np.testing.assert_allclose(plain["class"] * 8, released["class"], rtol=1e-5)
    assert plain["l1"] == plain["giou"] == 0


def test_focal_loss_without_focus_is_cross_entropy_and_survives_large_logits():
    logits, wanted = jnp.array([-200.0, -2.0, 0.5, 200.0]), jnp.array([0.0, 1.0, 0.0, 1.0])
    p = jax.nn.sigmoid(logits)
    entropy = -(wanted * jnp.log(p) + (1 - wanted) * jnp.log1p(-p))[1:3]
    np.testing.assert_allclose(2 * focal_loss(logits, wanted, 0.5, 0.0)[1:3], entropy, rtol=1e-6)
    gradient = jax.grad(lambda x: focal_loss(x, wanted).sum())(logits)
    assert np.isfinite(gradient).all() and gradient[0] == gradient[3] == 0


def test_another_matcher_fits_the_same_loss(stored):
    terms = jax.jit(SetPrediction(Hungarian(), count="matched"))(
        stored["logits"], stored["pred_boxes"], targets_of(stored), jnp.ones(8)
    )
    assert terms["l1"].weight == np.maximum(stored["gt_mask"].sum(1), 1).sum()


def test_federated_draws_follow_the_frequencies_and_keep_an_image_s_own():
    frequency = jnp.array([0.0, 1.0, 4.0, 16.0, 64.0, 1.0])
    targets = Targets(jnp.zeros((2, 4)), jnp.array([5, 2]), jnp.array([True, False]), jnp.array([8, 8]))
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn = np.asarray(jax.jit(jax.vmap(lambda key: federated(key, targets, frequency, 2)))(keys))
    assert (drawn.sum(1) == 2).all() and drawn[:, 5].all() and not drawn[:, 0].any()
    np.testing.assert_allclose(drawn[:, 1:5].mean(0), np.array([1, 2, 4, 8]) / 15, atol=0.03)
