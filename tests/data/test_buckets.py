"""Bucket bounds against brute force, the reference's sampler against its own batches."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.buckets import Bucket, assign, batch_rows, dynamic_batches, make_buckets, optimal_bounds
from data.errors import UserError

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "f5_tts"


def padded(lengths: list[int], bounds: list[int]) -> int:
    return int(np.asarray(bounds)[assign(np.asarray(lengths), bounds)].sum())


@given(st.lists(st.integers(1, 40), min_size=1, max_size=25), st.integers(1, 4), st.sampled_from([1, 1, 4]))
@settings(deadline=None, max_examples=60)
def test_bounds_minimise_the_padding(lengths: list[int], buckets: int, multiple: int):
    bounds = optimal_bounds(lengths, buckets, multiple)
    assert bounds == sorted(set(bounds)) and len(bounds) <= buckets and bounds[-1] >= max(lengths)
    assert all(b % multiple == 0 for b in bounds)
    values = sorted({-(-n // multiple) * multiple for n in lengths})
    best = min(
        padded(lengths, [*inner, values[-1]])
        for k in range(min(buckets, len(values)))
        for inner in itertools.combinations(values[:-1], k)
    )
    assert padded(lengths, bounds) == best


def test_long_histograms_are_quick():
    lengths = np.random.default_rng(0).gamma(4.0, 150.0, size=100_000).astype(int) + 1
    bounds = optimal_bounds(lengths, 8, 8)
    assert len(bounds) == 8
    assert 1 - lengths.sum() / padded(list(lengths), bounds) < 0.15  # one shape would waste three quarters


def test_frame_budget_decides_the_rows():
    assert batch_rows(100, 1000) == 10
    assert batch_rows(100, 1000, max_batch=7, multiple=2) == 6
    assert make_buckets([90, 100, 200], 2, 1000, multiple=2) == [Bucket(100, 10), Bucket(200, 4)]
    with pytest.raises(UserError, match=r"holds 1 examples of 600 frames.*multiple of 4.*frames_per_batch"):
        batch_rows(600, 1000, multiple=4)


def test_dynamic_batches_are_the_references():
    golden = json.loads((GOLDEN / "dynamic_batches.json").read_text())
    frames = [s * golden["sample_rate"] / golden["hop_length"] for s in golden["durations_sec"]]
    for case in golden["cases"]:
        batches = dynamic_batches(frames, case["frames_threshold"], case["max_samples"], case["drop_residual"])
        assert batches == case["batches"]
