"""Judge and verifier: the distance is Wasserstein's, real digits pass, noise does not, and the two are not one."""

import jax
import numpy as np
import pytest

from data.digits import load_split
from launch.evaluation.images import Judge, Verifier, edges, estimate, frechet


@pytest.fixture(scope="module")
def judge():
    return Judge()


def test_frechet_distance_has_its_closed_forms():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(5, 5))
    cov = a @ a.T
    mean = rng.normal(size=5)
    assert frechet((mean, cov), (mean, cov)) == pytest.approx(0.0, abs=1e-9)
    assert frechet((mean, cov), (mean + 2.0, cov)) == pytest.approx(20.0)
    diagonals = np.diag([1.0, 4.0]), np.diag([9.0, 1.0])
    assert frechet((np.zeros(2), diagonals[0]), (np.zeros(2), diagonals[1])) == pytest.approx(4.0 + 1.0)
    turn = np.linalg.qr(rng.normal(size=(2, 2)))[0]
    turned = tuple((turn @ np.ones(2) * i, turn @ d @ turn.T) for i, d in enumerate(diagonals))
    assert frechet(*turned) == pytest.approx(2.0 + 5.0)


def test_held_out_digits_pass_and_noise_does_not(judge):
    images, labels = load_split("test")
    assert 0.97 < judge.held_out_accuracy == judge.accuracy(images, labels) < 1.0
    assert judge.distance(images) == pytest.approx(0.0, abs=1e-9) and 0.1 < judge.floor < 1.0
    noise = np.random.default_rng(0).normal(size=images.shape)
    assert judge.accuracy(noise, labels) < 0.2 and judge.distance(noise) > 10 * judge.floor
    assert judge.distance(np.roll(images, 1, axis=2)) > 2 * judge.floor
    one_class = images[labels == 3]
    assert judge.distance(one_class) > 5 * judge.floor, "what lacks variety is far away"


def test_the_verifier_is_another_classifier_on_other_features(judge):
    verifier = Verifier()
    images, labels = load_split("test")
    assert 0.94 < verifier.held_out_accuracy < 1.0
    scores = jax.jit(verifier)(images, labels)
    assert scores.shape == (597,) and (np.asarray(scores) <= 0).all()
    wrong = jax.jit(verifier)(images, (labels + 1) % 10)
    assert np.mean(np.asarray(scores) > np.asarray(wrong)) > 0.97
    guesses = np.asarray(verifier.log_probabilities(images)).argmax(-1)
    assert (guesses != judge.classify(images)).sum() > 5, "they err on different images"


def test_edges_see_where_brightness_changes():
    image = np.full((1, 8, 8, 1), -1.0)
    assert np.abs(edges(image)).max() == 0.0
    image[:, :, 4:] = 1.0  # one vertical edge, brighter to the right
    found = np.asarray(edges(image)).reshape(4, 4, 4)  # rows, columns, directions
    assert (found[:, 2, 0] == 4.0).all() and np.abs(found[:, :2]).max() == 0.0 and np.abs(found[..., 1]).max() == 0.0


def test_intervals_hold_the_mean_and_shrink_with_seeds():
    values = np.random.default_rng(0).normal(size=64)
    few, many = estimate(values[:8]), estimate(values)
    assert few.low < few.value < few.high and many.high - many.low < few.high - few.low
    one = estimate([0.5])
    assert one.low == one.value == one.high == 0.5
    with pytest.raises(ValueError, match="one number per seed"):
        estimate([])
