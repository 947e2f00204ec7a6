"""Batches on their way to the devices."""

import threading
import time
from typing import Any

import jax
import numpy as np
import pytest

from train.feed import DeviceFeed, host_view, place
from train.mesh import build_mesh


def unplaced(batch) -> Any:
    return dict(batch)


class Source:
    """Counts what is asked of it."""

    def __init__(self, fail_at=None):
        self.given, self.closed, self.fail_at = 0, 0, fail_at

    def __iter__(self):
        return self

    def __next__(self):
        if self.given == self.fail_at:
            raise ValueError("clip 7 is broken")
        self.given += 1
        return {"x": np.full((8, 3), self.given - 1, np.float32)}

    def close(self):
        self.closed += 1


def test_batches_come_in_order_one_is_held_ready_and_no_more():
    source = Source()
    feed = DeviceFeed(source, lambda batch: {name: jax.numpy.asarray(x) for name, x in batch.items()})
    for number in range(4):
        fed = feed.next()
        assert int(fed.arrays["x"][0, 0]) == number == fed.host["x"][0, 0] and fed.waited >= 0
        time.sleep(0.05)
        assert source.given <= number + 3, "one in hand, one ready, one in the thread's own hands"
    feed.close()
    feed.close()
    assert source.closed == 2 and not any(t.name == "feed" for t in threading.enumerate())


def test_waiting_is_measured():
    def slow():
        while True:
            time.sleep(0.1)
            yield {"x": np.zeros((8, 1))}

    feed = DeviceFeed(slow(), unplaced)
    assert feed.next().waited > 0.05
    time.sleep(0.3)
    assert feed.next().waited < 0.05
    feed.close()


def test_errors_in_the_data_reach_the_loop_every_time_it_asks():
    feed = DeviceFeed(Source(fail_at=1), unplaced)
    feed.next()
    for _ in range(2):
        with pytest.raises(ValueError, match="clip 7 is broken"):
            feed.next()
    feed.close()


@pytest.mark.parametrize("sizes", [{"data": -1}, {"data": 2, "fsdp": 2, "sequence": 2}, {"tensor": 8, "data": 1}])
def test_placed_batches_hold_the_hosts_rows(sizes):
    mesh = build_mesh(sizes)
    assert host_view(mesh) == (0, 1)
    batch = {"x": np.arange(16 * 4 * 3, dtype=np.float32).reshape(16, 4, 3), "index": np.arange(16, dtype=np.int32)}
    arrays = place(batch, mesh, hosts=1)
    for name, x in batch.items():
        np.testing.assert_array_equal(arrays[name], x)
        assert arrays[name].dtype == x.dtype
    rows = mesh.shape["data"] * mesh.shape["fsdp"]
    time_parts = mesh.shape["sequence"]
    assert arrays["x"].addressable_shards[0].data.shape == (16 // rows, 4 // time_parts, 3)
