"""Infilling: what is known stays, text is encoded once, and both halves of guidance see what they should."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sampling.grids import flow_grid
from sampling.infill import InfillNetwork, infill, least_frames
from sampling.noise import start_noise
from sampling.solvers import Midpoint

B, T, M, N = 3, 12, 2, 5
R = np.random.default_rng(0)
CLIP = R.normal(size=(B, T, M)).astype(np.float32)
KNOWN = np.arange(T) < np.array([4, 0, 7])[:, None]
TEXT = R.integers(0, 9, (B, N)).astype(np.int32)
LENGTHS = np.array([12, 8, 10], np.int32)
NOISE = start_noise(jax.random.key(0), jnp.arange(B), (T, M))


class Network:
    """Records what it is asked; its data prediction is a function of clip and text alone."""

    def __init__(self):
        self.encoded, self.predicted = [], []

    def encode(self, text, lengths, drop):
        self.encoded.append((text.shape, lengths, drop))
        return jnp.where(drop, 0.0, text.sum(1)).astype(jnp.float32)[:, None, None] * jnp.ones((1, T, 1))

    def predict(self, x, clip, text, t, lengths):
        self.predicted.append((x.shape, clip, lengths))
        return 0.5 * clip + 0.1 * text

    def run(self, grid=None, **options):
        network = InfillNetwork(self.encode, self.predict, "data")
        grid = flow_grid(8) if grid is None else grid
        return infill(network, CLIP, KNOWN, TEXT, LENGTHS, NOISE, grid, **options)


def test_a_data_prediction_is_reached_exactly_and_known_frames_stay():
    network = Network()
    out = np.asarray(network.run(weight=None).out)
    np.testing.assert_array_equal(out[KNOWN], CLIP[KNOWN])
    spoken = 0.1 * TEXT.sum(1)[:, None, None] + 0.5 * np.where(KNOWN[..., None], CLIP, 0.0)
    np.testing.assert_allclose(out[~KNOWN], np.broadcast_to(spoken, out.shape)[~KNOWN], atol=1e-5)


def test_text_is_encoded_in_one_call_outside_the_loop():
    for weight, rows in ((None, B), (3.0, 2 * B)):
        network = Network()
        result = network.run(weight=weight, solver=Midpoint())
        assert [shape for shape, *_ in network.encoded] == [(rows, N)]
        assert {shape for shape, *_ in network.predicted} == {(rows, T, M)}
        assert len(network.predicted) == 2, "traced once for each of the solver's evaluations, whatever the steps"
        assert int(result.ledger.network_calls) == 8 * 2 * (rows // B)


def test_guidance_compares_with_nothing_known_and_nothing_said():
    network = Network()
    out = np.asarray(network.run(weight=3.0).out)
    (_, lengths, drop), (_, clip, again) = network.encoded[0], network.predicted[0]
    np.testing.assert_array_equal(drop, np.arange(2 * B) >= B)
    np.testing.assert_array_equal(lengths, np.concatenate([LENGTHS, LENGTHS]))
    assert again.shape == (2 * B,) and clip.shape == (2 * B, T, M)
    given = 0.1 * TEXT.sum(1)[:, None, None] + 0.5 * np.where(KNOWN[..., None], CLIP, 0.0)
    np.testing.assert_allclose(out[~KNOWN], np.broadcast_to(3.0 * given, out.shape)[~KNOWN], atol=1e-4)


def test_what_is_not_known_of_the_clip_is_never_seen():
    hidden = np.where(KNOWN[..., None], CLIP, np.nan)
    network = Network()
    result = infill(
        InfillNetwork(network.encode, network.predict, "data"),
        hidden, KNOWN, TEXT, LENGTHS, NOISE, flow_grid(4), weight=2.0,
    )  # fmt: skip
    assert np.isfinite(result.out).all()


def test_lengths_may_be_missing():
    seen = []
    network = InfillNetwork(lambda text, lengths, drop: seen.append(lengths) or jnp.zeros((B, T, 1)), lambda x, *_: x)
    infill(network, CLIP, KNOWN, TEXT, None, NOISE, flow_grid(2), weight=None)
    assert seen == [None]


@pytest.mark.parametrize(
    "asked, symbols, known, total", [(50, 10, 20, 50), (5, 33, 21, 34), (5, 3, 21, 22), (10**6, 1, 1, 65536)]
)
def test_an_utterance_has_more_frames_than_symbols_and_than_its_prompt(asked, symbols, known, total):
    assert least_frames(*(np.array([n]) for n in (asked, symbols, known))).tolist() == [total]
