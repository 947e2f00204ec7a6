"""The order of things in the loop, with everything around it faked."""

import json
import types
from typing import Any

import numpy as np
import pytest

from train.feed import Fed
from train.loop import fit
from train.preempt import PREEMPTED, STOPS, Diverged, signal
from train.progress import Progress
from train.writers import Writers


class Late:
    """A metric that notes when the host asks for it."""

    def __init__(self, events, step, value):
        self._events, self._step, self._value = events, step, value

    def __array__(self, dtype=None, copy=None):
        self._events.append(("fetch", self._step))
        return np.asarray(self._value, dtype)


class Records:
    def __init__(self):
        self.rows = []

    def scalars(self, step, kind, values):
        self.rows.append((step, kind, dict(values)))

    def close(self):
        pass


class Recorder:
    """Hook, saver and preemption in one; due at multiples of ``every``."""

    def __init__(self, events, name, every=0, stop_at=None):
        self.events, self.name, self.every, self.stop_at = events, name, every, stop_at

    def due(self, step):
        return self.every > 0 and step > 0 and step % self.every == 0

    def __call__(self, step, state):
        self.events.append((self.name, step))
        assert state == step, "a hook at step k sees the state after k updates"

    def finish(self, step, state):
        self.events.append((f"{self.name} at the end", step))

    def check(self, step=None):
        return STOPS[signal.SIGTERM] if step is not None and step == self.stop_at else None

    def wait(self):
        self.events.append(("wait", None))


def run(steps=6, start=0, every=2, hook_every=4, stop_at=None, skipped=(), max_skipped=2):
    """Fits a number that counts updates; returns (state, stop, events, records)."""
    events: Any = []
    records: Any = Records()
    batch_number = iter(range(start, 100))

    def step(state, arrays):
        events.append(("step", state))
        assert arrays["x"][0] == state, "batch k goes to update k"
        row = next(n for n in range(10) if state - n not in skipped)
        metrics = {"loss": (Late(events, state, 2.0 * state), 1.0), "finite": state not in skipped, "skipped_row": row}
        return state + 1, metrics

    def batch():
        number = next(batch_number)
        events.append(("batch", number))
        arrays: Any = {"x": np.full(1, number)}
        return Fed(arrays, arrays, 0.0)

    console: Any = types.SimpleNamespace(line=lambda text, lasting: None, note=lambda text: None)
    progress = Progress(
        start=start,
        steps=steps,
        every=every,
        unit="rows",
        count=len,
        work=lambda shapes: 0.0,
        peak=None,
        max_skipped=max_skipped,
        writers=Writers([records]),
        console=console,
    )
    save: Any = Recorder(events, "save")
    feed: Any = types.SimpleNamespace(next=batch)
    preemption: Any = Recorder(events, "preempt", stop_at=stop_at)
    first: Any = start
    state, stop = fit(
        first,
        start=start,
        steps=steps,
        train_step=step,
        feed=feed,
        hooks=[Recorder(events, "hook", hook_every), save],
        save=save,
        progress=progress,
        preemption=preemption,
    )
    return state, stop, events, records.rows


def test_hooks_act_before_the_batch_is_taken_and_after_earlier_metrics_are_settled():
    state, stop, events, _ = run()
    assert state == 6 and stop is None
    at = events.index(("hook", 4))
    assert events[at - 1] == ("fetch", 3) and events[at + 1] == ("batch", 4)
    assert events[-5:] == [("save", 6), ("wait", None), ("hook at the end", 6), ("save at the end", 6), ("wait", None)]


def test_metrics_are_fetched_one_step_late_and_two_steps_are_in_flight_at_most():
    _, _, events, _ = run(hook_every=0, steps=8)
    for k in range(7):
        assert events.index(("step", k + 1)) < events.index(("fetch", k))
        if k < 6:
            assert events.index(("fetch", k)) < events.index(("step", k + 2))


def test_records_are_means_over_the_interval_and_the_last_one_is_never_lost():
    _, _, _, rows = run(steps=5)
    assert [(step, kind) for step, kind, _ in rows] == [(2, "train"), (4, "train"), (5, "train")]
    assert [values["loss"] for _, _, values in rows] == [1.0, 5.0, 8.0]


def test_a_signal_ends_the_loop_with_a_save_and_without_final_hooks():
    state, stop, events, _ = run(stop_at=3)
    assert state == 3 and stop is not None and stop.code == PREEMPTED
    assert events[-2:] == [("save", 3), ("wait", None)]


def test_an_interval_cut_by_a_stop_goes_on_as_if_it_had_not_been():
    records: Any = Records()
    console: Any = types.SimpleNamespace(line=lambda text, lasting: None)

    def progress(start):
        return Progress(
            start=start, steps=9, every=3, unit="rows", count=len, work=lambda s: 0.0, peak=None, max_skipped=0,
            writers=Writers([records]), console=console,
        )  # fmt: skip

    def push(target, step):
        target.push(step, {"loss": (0.1 * step, 0.3 * step), "lr": 1.0 / step}, Fed({}, {}, 0.0))

    whole = progress(0)
    for step in range(1, 7):
        push(whole, step)
    whole.flush()
    expected, records.rows = records.rows, []
    first = progress(0)
    for step in range(1, 6):
        push(first, step)
    first.flush()
    second = progress(5)
    second.load(json.loads(json.dumps(first.state())))
    push(second, 6)
    second.flush()
    strip = [(s, k, {n: v for n, v in values.items() if "perf" not in n}) for s, k, values in records.rows]
    assert strip == [(s, k, {n: v for n, v in values.items() if "perf" not in n}) for s, k, values in expected]


def test_too_many_skipped_steps_in_a_row_end_the_run():
    assert run(skipped=(1, 3))[0] == 6
    with pytest.raises(Diverged, match="2 steps in a row, up to step 3"):
        run(skipped=(1, 2))
