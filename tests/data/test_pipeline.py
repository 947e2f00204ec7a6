"""Batches as a function of the step: host counts, resume, coverage, pairs, padding, threads."""

import threading
import time
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.buckets import Bucket
from data.pipeline import Batch, Example, Examples, Pairing, Schedule, StepSource, fixed_batches, loader


def collate(examples: Sequence[Example], frames: int) -> Batch:
    """Batches that show which utterances they hold."""
    return {"who": np.array([[*e, -1][:2] for e in examples]), "frames": np.full(len(examples), frames)}


def source(lengths, buckets, pairing=None, seed=0, host=(0, 1)) -> StepSource:
    return StepSource(Examples(np.asarray(lengths), buckets, pairing, seed), buckets, collate, seed, *host)


BUCKETS = [Bucket(40, 8), Bucket(100, 4)]
LENGTHS = np.random.default_rng(0).integers(10, 100, size=57)


@given(st.integers(0, 10**12), st.integers(0, 2**31), st.booleans())
@settings(deadline=None, max_examples=40)
def test_any_number_of_hosts_gives_the_same_global_batch(step: int, seed: int, pairs: bool):
    buckets = [Bucket(80, 8), Bucket(200, 4)] if pairs else BUCKETS
    pairing = Pairing(LENGTHS, np.arange(57) % 3) if pairs else None
    whole = source(LENGTHS, buckets, pairing, seed)[step]
    assert whole["index"].tolist() == list(range(len(whole["index"]))) and whole["mask"].all()
    for count in (2, 4):
        parts = [source(LENGTHS, buckets, pairing, seed, (i, count))[step] for i in range(count)]
        for name, value in whole.items():
            np.testing.assert_array_equal(np.concatenate([p[name] for p in parts]), value)


def test_hosts_must_divide_the_rows():
    with pytest.raises(ValueError, match="row_multiple"):
        source(LENGTHS, BUCKETS, host=(0, 3))


@given(st.integers(0, 2**31))
@settings(deadline=None, max_examples=10)
def test_every_utterance_comes_once_in_a_cycle(seed: int):
    made = Examples(LENGTHS, BUCKETS, None, seed)
    for b, (low, high) in enumerate([(0, 40), (40, 100)]):
        members = np.flatnonzero((low < LENGTHS) & (high >= LENGTHS))
        first = [e[0] for e in made.draw(b, np.arange(len(members)))]
        second = [e[0] for e in made.draw(b, np.arange(len(members), 2 * len(members)))]
        assert sorted(first) == sorted(second) == members.tolist() and first != second


def test_buckets_are_visited_as_often_as_they_need():
    data = source(LENGTHS, BUCKETS)
    seen: Counter[int] = Counter()
    steps = 800
    for step in range(steps):
        bucket, examples = data.global_examples(step)
        assert all(LENGTHS[u] <= bucket.frames for e in examples for u in e)
        seen.update(u for e in examples for u in e)
    counts = np.array([seen[i] for i in range(len(LENGTHS))])
    expected = steps / data.steps_per_pass
    assert np.abs(counts / expected - 1).max() < 0.05  # short and long ones alike
    # Batches of one shape do not come in a row.
    order = [data.global_examples(s)[0].frames for s in range(200)]
    assert 40 in order[:12] and 100 in order[:12]


def test_a_tiny_bucket_is_not_forgotten():
    schedule = Schedule([1000.0, 1.0], [8, 8], seed=0)
    assert schedule.batches.min() >= 1
    buckets = [schedule(s)[0] for s in range(int(schedule.batches.sum()))]
    assert buckets.count(1) == 1


def test_far_steps_cost_no_more_than_near_ones():
    data = source(np.random.default_rng(0).integers(10, 100, size=50_000), BUCKETS)
    data[0]
    start = time.perf_counter()
    data[10**15]
    assert time.perf_counter() - start < 0.1


@given(st.lists(st.integers(1, 30), min_size=2, max_size=30), st.integers(1, 3), st.integers(0, 60), st.integers(0, 40))
@settings(deadline=None, max_examples=60)
def test_prompts_are_all_those_that_fit_and_no_others(lengths: list[int], voices: int, low: int, width: int):
    speakers = np.arange(len(lengths)) % voices
    pairing, high = Pairing(np.array(lengths), speakers), low + width
    for target in range(len(lengths)):
        fits = {
            p
            for p in range(len(lengths))
            if p != target and speakers[p] == speakers[target] and low < lengths[p] + lengths[target] <= high
        }
        many = np.full(200, target)
        assert pairing.count(many, low, high)[0] == len(fits)
        drawn = pairing.prompt(many, low, high, (np.arange(200) + 0.5) / 200)
        assert set(drawn.tolist()) == (fits or {-1})


def test_pairs_cover_targets_evenly_and_stay_in_their_shape():
    rng = np.random.default_rng(1)
    lengths, speakers = rng.integers(20, 60, size=40), np.arange(40) % 2
    speakers[7] = 9  # has no partner
    buckets = [Bucket(60, 4), Bucket(90, 4), Bucket(120, 4)]
    data = source(lengths, buckets, Pairing(lengths, speakers))
    targets: Counter[int] = Counter()
    steps = 800
    for step in range(steps):
        bucket, examples = data.global_examples(step)
        for e in examples:
            targets[e[-1]] += 1
            total = int(sum(lengths[u] for u in e))
            assert total <= bucket.frames and len({speakers[u] for u in e}) == 1
            assert len(e) == 2 or e == (7,)
    counts = np.array([targets[i] for i in range(40)])
    assert np.abs(counts / (steps * 4 / 40) - 1).max() < 0.2


def test_evaluation_holds_every_example_once_and_marks_the_filling():
    examples = [(i,) for i in range(len(LENGTHS))]
    whole = fixed_batches(examples, LENGTHS, BUCKETS, collate)
    real = np.concatenate([b["who"][b["mask"] == 1, 0] for b in whole])
    assert sorted(real) == list(range(len(LENGTHS)))
    assert {len(b["mask"]) for b in whole} == {8, 4} and any((b["mask"] == 0).any() for b in whole)
    halves = [fixed_batches(examples, LENGTHS, BUCKETS, collate, i, 2) for i in range(2)]
    for batch, first, second in zip(whole, *halves, strict=True):
        for name in batch:
            np.testing.assert_array_equal(np.concatenate([first[name], second[name]]), batch[name])
    with pytest.raises(ValueError, match="longer than the largest shape"):
        fixed_batches([(0, 1, 2, 3, 4, 5)], LENGTHS, BUCKETS, collate)


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_the_loader_keeps_order_resumes_and_ends_its_threads(threads: int):
    data = source(LENGTHS, BUCKETS)
    before = threading.active_count()
    with loader(data, start_step=7, threads=threads) as batches:
        for step in range(7, 20):
            np.testing.assert_array_equal(next(batches)["who"], data[step]["who"])
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before
    batches.close()  # twice does no harm


def test_the_loader_passes_errors_on():
    class Broken:
        def __len__(self) -> int:
            return 10

        def __getitem__(self, step: int) -> Batch:
            raise RuntimeError(f"no batch {step}")

    with loader(Broken(), 3, threads=1) as batches, pytest.raises(RuntimeError, match="no batch 3"):
        next(batches)
