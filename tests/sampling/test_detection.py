"""Sampling of boxes: paths of boxes, and runs with heads whose answers are known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sampling.box_paths import CosineBoxes, KarrasBoxes, decode, encode
from sampling.detection import denoise, detect
from sampling.noise import Keyed, Stored

SIZE = jnp.array([[64, 96], [80, 80], [96, 48]])
PATHS = {
    "cosine": CosineBoxes(),
    "euler": KarrasBoxes(),
    "renoise": KarrasBoxes(solver="renoise", boundary=0.02),
}
TRUTH = jnp.array([[4.0, 6.0, 30.0, 40.0], [34.0, 10.0, 47.0, 60.0]])  # inside every image


def attracted(boxes, time):
    """A head: moves boxes halfway to the nearer of two objects, the surer of its class the closer it was."""
    away = jnp.abs(boxes[:, :, None] - TRUTH).sum(-1)
    nearer = away.argmin(-1)
    logits = (2.0 - away / 20) + 1e-3 * time[:, None, None]
    return logits, (boxes + TRUTH[nearer]) / 2


def test_coding_is_undone_and_noise_is_never_an_inverted_box():
    boxes = jnp.broadcast_to(TRUTH, (3, 2, 4))
    for path in PATHS.values():
        x = encode(boxes, SIZE, path.scale)
        np.testing.assert_allclose(decode(x, SIZE, path.scale), boxes, rtol=1e-5)
        noise = 5 * jax.random.normal(jax.random.key(0), (3, 500, 4))
        shown = path.place(path.start * noise, jnp.full(3, path.plan(1).level[0]), SIZE)
        assert (shown[..., 2:] >= shown[..., :2]).all()
    loose = dataclasses.replace(PATHS["euler"], clamp=False).place(40.0 * noise, 40.0, SIZE)
    assert (loose[..., 2:] < loose[..., :2]).any()


def test_at_the_least_noise_the_answer_is_the_input_itself():
    """f(x, σ_min) = x whatever the network says; with more noise it is the network's, nearly."""
    path, boxes = PATHS["renoise"], jnp.broadcast_to(TRUTH, (3, 2, 4))
    said = boxes[:, ::-1] + 3.0
    x = encode(boxes, SIZE, 1.0)
    np.testing.assert_allclose(path.answer(x, said, path.sigma_min, SIZE), boxes, rtol=1e-5)
    np.testing.assert_allclose(path.answer(x, said, jnp.full(3, 40.0), SIZE), said, rtol=1e-4)
    stages = path.answer(x, jnp.stack([boxes, said]), jnp.full(3, 0.02), SIZE)
    np.testing.assert_allclose(stages[0], boxes, rtol=1e-4)
    assert stages.shape == (2, 3, 2, 4) and not np.allclose(stages[1], said, atol=0.1)


@pytest.mark.parametrize("name", PATHS)
def test_steps_lead_from_one_level_s_law_to_the_next_s(name):
    """With the true boxes as the answer, a step leaves exactly the noise of the next level."""
    path = PATHS[name]
    plan = path.plan(7)
    alpha, sigma = (np.append(a[1:], end) for a, end in ((plan.alpha, 1.0), (plan.sigma, 0.0)))
    np.testing.assert_allclose(plan.data, alpha, rtol=1e-12)
    least = path.sigma_min if name == "renoise" else 0.0  # where a consistency function leaves its answers
    wanted = np.sqrt(np.maximum(sigma**2 - least**2, 0))
    np.testing.assert_allclose(np.hypot(plan.noise, plan.fresh), wanted, atol=1e-12)
    x = path.noisy(jnp.ones((3, 1, 4)), 2 * jnp.ones((3, 1, 4)), jnp.full(3, plan.level[3]))
    np.testing.assert_allclose(x, plan.alpha[3] + 2 * plan.sigma[3], rtol=1e-5)


def test_time_is_a_function_of_the_noise_for_any_number_of_steps():
    path = KarrasBoxes(time="level", trained=40, ends=True)
    np.testing.assert_allclose(path.plan(40).time, np.arange(40), atol=1e-9)
    np.testing.assert_allclose(path.plan(14).time, np.arange(14) * 3, atol=1e-9)
    assert dataclasses.replace(path, time="step").plan(2).time.tolist() == [0, 1]  # the release: σ_min as its second
    assert (np.diff(KarrasBoxes().plan(8).time) < 0).all()


@pytest.mark.parametrize("name", PATHS)
def test_a_batch_is_what_its_images_are_alone(name):
    key, ids = jax.random.key(3), jnp.array([7, 1, 12])

    @jax.jit
    def run(size, noise):
        return detect(attracted, PATHS[name], size, noise, proposals=16, steps=3, renewal=0.6)

    together = run(SIZE, Keyed(key, ids))
    for i in range(3):
        alone = run(SIZE[i : i + 1], Keyed(key, ids[i : i + 1]))
        for a, b in zip(together, alone, strict=True):
            np.testing.assert_allclose(np.asarray(a[i], np.float32), np.asarray(b[0], np.float32), rtol=1e-5, atol=1e-4)


def test_more_steps_find_both_objects_better():
    noise = Keyed(jax.random.key(0), jnp.arange(3))
    errors = []
    for steps in (1, 3, 6):
        found = jax.jit(lambda steps=steps: detect(attracted, CosineBoxes(), SIZE, noise, proposals=24, steps=steps))()
        assert found.valid[:, 0].all() and (jnp.diff(found.scores * found.valid) <= 1e-6).all()
        for label in (0, 1):
            first = jnp.where(found.valid & (found.labels == label), found.scores, -1).argmax(1)
            errors.append(float(jnp.abs(found.boxes[jnp.arange(3), first] - TRUTH[label]).max()))
    assert errors[4] < errors[0] and errors[5] < errors[1] and max(errors[4:]) < 12


def test_renewal_keeps_the_likely_first_and_starts_the_others_anew():
    """From stored noise, so every place's numbers are known."""
    noise = jax.random.normal(jax.random.key(1), (2, 3, 16, 4))
    path = CosineBoxes()

    def run(renewal):
        return jax.jit(lambda: denoise(attracted, path, SIZE, Stored(noise), proposals=16, steps=2, renewal=renewal))()

    trace = run(0.6)
    keep = jax.nn.sigmoid(trace.logits[0]).max(-1) > 0.6
    kept, plan = np.asarray(trace.kept[0]), path.plan(2)
    assert kept.tolist() == keep.sum(-1).tolist() and kept.min() > 0 and kept.max() < 16
    for row in range(3):
        np.testing.assert_allclose(trace.x[1, row, kept[row] :], noise[1, row, kept[row] :])
        first = np.flatnonzero(keep[row])[0]
        clean = encode(trace.boxes[0], SIZE, 2.0)[row, first].clip(-2, 2)
        held = (noise[0, row, first] - plan.alpha[0] * clean) / plan.sigma[0]
        wanted = plan.data[0] * clean + plan.noise[0] * held + plan.fresh[0] * noise[1, row, 0]
        np.testing.assert_allclose(trace.x[1, row, 0], wanted, rtol=1e-4, atol=1e-5)
    assert (run(None).kept == 16).all()


def test_which_steps_count():
    noise = Stored(jax.random.normal(jax.random.key(1), (3, 3, 8, 4)))

    def columns(steps, use):
        run = lambda: detect(attracted, CosineBoxes(), SIZE, noise, proposals=8, steps=steps, use=use)  # noqa: E731
        return jax.eval_shape(run).valid.shape

    assert [columns(3, use) for use in ("all", "release", "last")] == [(3, 24), (3, 16), (3, 8)]
    assert columns(1, "release") == columns(2, "release") == (3, 8)


def test_wrong_arguments_are_named():
    noise = Keyed(jax.random.key(0), jnp.arange(3))
    with pytest.raises(ValueError, match="at least one step and one box, got 0 and 4"):
        detect(attracted, CosineBoxes(), SIZE, noise, proposals=4, steps=0)
    with pytest.raises(ValueError, match="use must be one of all, last, release, got 'some'"):
        detect(attracted, CosineBoxes(), SIZE, noise, proposals=4, use="some")
    with pytest.raises(ValueError, match="2 sample ids for 3 rows"):
        detect(attracted, CosineBoxes(), SIZE, Keyed(jax.random.key(0), jnp.arange(2)), proposals=4)
    with pytest.raises(ValueError, match="time must be one of log, level, step, got 'index'"):
        KarrasBoxes(time="index")
