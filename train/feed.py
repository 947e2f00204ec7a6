"""Batches from the host onto the devices, one ahead of the step that takes them."""

import math
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from train.sharding import batch_shardings

HostBatch = Mapping[str, np.ndarray]


class Fed(NamedTuple):
    """One batch.

    Attributes:
      arrays: global arrays on the devices.
      host: this process's rows of it.
      waited: seconds that the caller stood still for it.
    """

    arrays: dict[str, jax.Array]
    host: HostBatch
    waited: float


class HostView(NamedTuple):
    """Which rows of the global batch a process supplies: part ``index`` of ``count`` equal ones."""

    index: int
    count: int


def host_view(mesh: Mesh) -> HostView:
    """The part of every batch that lies on this process's devices.

    Processes that share rows (a tensor axis that spans hosts) get the same part and must read the same data.

    Raises:
      ValueError: the mesh gives this process rows that are not one contiguous, aligned part.
    """
    rows = math.prod(mesh.shape[axis] for axis in ("data", "fsdp"))
    sharding = batch_shardings({"rows": np.empty(rows)}, mesh)["rows"]
    mine: set[int] = set()
    for (part,) in sharding.addressable_devices_indices_map((rows,)).values():  # type: ignore[misc]
        mine |= set(range(rows)[part])
    first, count = min(mine), len(mine)
    if mine != set(range(first, first + count)) or rows % count or first % count:
        raise ValueError(
            f"this process holds rows {sorted(mine)} of {rows} of the mesh; they must be one aligned block"
        )
    return HostView(first // count, rows // count)


def place(batch: HostBatch, mesh: Mesh, hosts: int) -> dict[str, jax.Array]:
    """Global arrays out of every process's own rows (numpy, leading dimension = global batch / ``hosts``)."""
    whole = {name: jax.ShapeDtypeStruct((len(x) * hosts, *x.shape[1:]), x.dtype) for name, x in batch.items()}
    shardings = batch_shardings(whole, mesh)
    return {
        name: jax.make_array_from_process_local_data(shardings[name], np.asarray(x), whole[name].shape)
        for name, x in batch.items()
    }


class DeviceFeed:
    """Pulls batches in a thread of its own and holds one in readiness, on the devices.

    Args:
      batches: host batches, the first one that of the step the run starts with; closed with the feed if it can be.
      put: host batch -> global arrays, see ``place``.
    """

    def __init__(self, batches: Iterator[HostBatch], put: Callable[[HostBatch], dict[str, jax.Array]]) -> None:
        self._batches = batches
        self._put = put
        self._ready: queue.Queue[Any] = queue.Queue(maxsize=1)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._pull, name="feed", daemon=True)
        self._thread.start()

    def next(self) -> Fed:
        """The next batch; waits for it if need be.

        Raises:
          StopIteration: the data is at its end.
          Exception: whatever reading the data raised.
        """
        start = time.perf_counter()
        item = self._ready.get()
        if isinstance(item, BaseException):
            self._ready.put(item)  # asked again, it says the same
            raise item
        arrays, host = item
        return Fed(arrays, host, time.perf_counter() - start)

    def close(self) -> None:
        """Ends the thread and the loader's own threads; may be called twice."""
        self._closing.set()
        patience = time.monotonic() + 10.0  # a reader that hangs must not keep the run from ending
        while self._thread.is_alive() and time.monotonic() < patience:
            try:  # the thread may stand in front of a full queue
                self._ready.get_nowait()
            except queue.Empty:
                self._thread.join(timeout=0.05)
        close = getattr(self._batches, "close", None)
        if close is not None:
            close()

    def _pull(self) -> None:
        while not self._closing.is_set():
            try:
                host = next(self._batches)
                item: Any = (self._put(host), host)
            except BaseException as error:
                item = error
            self._ready.put(item)
            if isinstance(item, BaseException):
                return
