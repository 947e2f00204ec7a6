"""Flow matching with infilling: draws that belong to their rows, the release's spans, a loss that counts no padding."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.objectives.flow_matching import Draws, FlowMatching, even_times, span_mask

GOLDEN = Path(__file__).parents[1] / "golden" / "f5_tts"
KEY = jax.random.key(7)


def draw(objective: FlowMatching, rows=range(64), frames=40, mel=3, lengths=None) -> Draws:
    index = jnp.asarray(list(rows), jnp.int32)
    lengths = jnp.full(len(index), 40, jnp.int32) if lengths is None else jnp.asarray(lengths, jnp.int32)
    return objective.draw(KEY, index, lengths, frames, mel)


@pytest.mark.parametrize("file", sorted(GOLDEN.glob("loss_*.npz")), ids=lambda p: p.stem)
def test_spans_are_the_releases(file):
    stored = np.load(file)
    lengths = jnp.asarray(stored["lens"])
    span = span_mask(stored["frac_lengths"], stored["span_start_u"], lengths, stored["mel"].shape[1])
    np.testing.assert_array_equal(span, stored["span_mask_before_and"])


@pytest.mark.parametrize("time", ["uniform", "release", "logit_normal"])
def test_a_row_draws_the_same_in_any_batch_and_bucket(time):
    objective = FlowMatching(time=time)
    whole = draw(objective, rows=range(8))
    some = draw(objective, rows=[5, 2], frames=56)
    for name, a, b in zip(Draws._fields, whole, some, strict=True):
        a = a[jnp.array([5, 2])]
        np.testing.assert_array_equal(a, b[:, :40] if name in ("noise", "span") else b, err_msg=name)


def test_spans_hide_seven_to_ten_tenths_of_each_row():
    lengths = np.random.default_rng(0).integers(10, 41, 512)
    span = np.asarray(draw(FlowMatching(), rows=range(512), lengths=lengths).span)
    share = span.sum(1) / lengths
    assert (share <= 1.0).all() and (share > 0.7 - 1 / lengths).all()
    assert 0.82 < share.mean() < 0.86  # 0.85 less half a frame of rounding
    assert (np.abs(np.diff(np.pad(span, ((0, 0), (1, 1))).astype(int), axis=1)).sum(1) == 2).all(), "one piece each"
    assert not (span & (np.arange(40) >= lengths[:, None])).any()


def test_drops_have_their_probabilities_per_sample_and_agree_per_batch():
    draws = draw(FlowMatching(), rows=range(4096), mel=1)
    audio, text = np.asarray(draws.drop_audio), np.asarray(draws.drop_text)
    assert abs(text.mean() - 0.2) < 0.02 and abs(audio.mean() - 0.44) < 0.025
    assert (audio | ~text).all(), "text is never dropped alone"
    both = [draw(FlowMatching(drop_per="batch"), rows=range(8 * i, 8 * i + 8)) for i in range(4)]
    assert all(bool((d.drop_audio == both[0].drop_audio[0]).all()) for d in both)


def test_even_times_are_uniform_and_more_even_than_chance():
    t = np.sort(np.asarray(even_times(KEY, jnp.arange(256))))
    assert np.abs(t - (np.arange(256) + 0.5) / 256).max() < 0.02  # independent draws: about 0.06
    far = np.asarray(even_times(KEY, jnp.arange(10**6, 10**6 + 64)))
    assert np.unique(far).size == 64 and ((far > 0) & (far < 1)).all()
    offsets = np.asarray([even_times(jax.random.key(i), jnp.array([3]))[0] for i in range(200)])
    assert abs(offsets.mean() - 0.5) < 0.08 and abs(offsets.std() - 12**-0.5) < 0.04


def test_logit_normal_times_have_their_median_and_spread():
    t = np.asarray(draw(FlowMatching(time="logit_normal", time_mean=-0.5, time_std=0.8), range(2048), mel=1).time)
    logit = np.log(t / (1 - t))
    assert logit.mean() == pytest.approx(-0.5, abs=0.02) and logit.std() == pytest.approx(0.8, abs=0.02)


def known_batch():
    rng = np.random.default_rng(1)
    data = rng.normal(size=(4, 40, 3)).astype(np.float32)
    lengths = np.array([40, 31, 25, 12], np.int32)
    return jnp.asarray(data), jnp.asarray(lengths), jnp.ones(4)


@pytest.mark.parametrize("prediction", ["velocity", "data"])
def test_loss_is_the_mean_squared_velocity_error_inside_the_span(prediction):
    data, lengths, rows = known_batch()
    objective = FlowMatching(prediction=prediction, max_weight=1e9)
    draws = draw(objective, rows=range(4), lengths=lengths)
    wrong = np.random.default_rng(2).normal(size=data.shape).astype(np.float32)

    def predict(x, clip, time, drop_audio, drop_text):
        np.testing.assert_array_equal(np.where(hidden[..., None], 0, data), clip)
        t = time[:, None, None]
        return (data - draws.noise + wrong) if prediction == "velocity" else data + (1 - t) * wrong

    hidden = np.asarray(draws.span) & (np.arange(40) < np.asarray(lengths)[:, None])
    result = objective.loss(predict, data, lengths, rows, draws)
    assert float(result.weight) == hidden.sum() * 3
    np.testing.assert_allclose(float(result.sum), np.square(wrong[hidden]).sum(), rtol=1e-4)
    total, weight = (sum(float(v[i]) for v in result.buckets.values()) for i in (0, 1))
    assert total == pytest.approx(float(result.sum), rel=1e-5) and weight == float(result.weight)


def test_padding_frames_and_rows_count_nothing_even_if_they_are_nan():
    data, lengths, rows = known_batch()
    objective = FlowMatching()
    draws = draw(objective, rows=range(4), lengths=lengths)
    valid = (jnp.arange(40) < lengths[:, None])[..., None]

    def predict(x, clip, time, drop_audio, drop_text):
        return jnp.where(valid, 0.3 * x, jnp.nan)

    def value(data, rows):
        result = objective.loss(predict, data, lengths, rows, draws)
        return result.sum / result.weight

    reference = value(data, rows)
    assert bool(jnp.isfinite(jax.grad(lambda d: value(d, rows))(jnp.where(valid, data, 0.0))).all())
    np.testing.assert_allclose(value(jnp.where(valid, data, 1e3), rows), reference, rtol=1e-6)
    fewer = objective.loss(predict, data, lengths, rows.at[2].set(0.0), draws)
    keep = jnp.array([0, 1, 3])
    alone = objective.loss(
        lambda x, *rest: 0.3 * x, data[keep], lengths[keep], rows[keep], Draws(*(d[keep] for d in draws))
    )
    np.testing.assert_allclose(fewer.sum, alone.sum, rtol=1e-5)
    assert float(fewer.weight) == float(alone.weight)


def test_a_data_prediction_at_the_very_end_stays_finite():
    data, lengths, rows = known_batch()
    objective = FlowMatching(prediction="data", max_weight=20.0)
    draws = draw(objective, rows=range(4), lengths=lengths)._replace(time=jnp.ones(4))
    result = objective.loss(lambda x, *rest: x + 0.1, data, lengths, rows, draws)
    np.testing.assert_allclose(float(result.sum / result.weight), (20 * 0.1) ** 2, rtol=1e-3)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"prediction": "noise"}, "prediction must be"),
        ({"time": "cosine"}, "time must be one of"),
        ({"drop_per": "epoch"}, "drop_per must be"),
        ({"span": (0.0, 1.0)}, "span must be a range"),
        ({"drop_audio": 1.5}, "drop_audio is a probability"),
    ],
)
def test_wrong_settings_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        FlowMatching(**wrong)
