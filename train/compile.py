"""Compile first: executables are made ahead of time, one per batch shape, counted, and reported before step 1."""

import dataclasses
import os
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from train.sharding import batch_shardings
from train.trees import readable


@dataclasses.dataclass(frozen=True)
class CompileReport:
    """What XLA plans for one executable, per device.

    Attributes:
      shapes: the batch's arrays, as text.
      seconds: tracing and compiling (or reading from the cache).
      arguments, outputs, aliased, temporary: bytes; outputs that alias donated arguments take no extra memory.
      flops: XLA's count, which takes a scanned layer stack once; use ``Task.flops`` for utilisation.
      unused_donations: donated buffers XLA could not reuse, as its own warning lists them; empty when all were.
    """

    shapes: str
    seconds: float
    arguments: int
    outputs: int
    aliased: int
    temporary: int
    flops: float
    unused_donations: str

    @property
    def peak(self) -> int:
        """Upper bound of the bytes in use while it runs."""
        return self.arguments + self.outputs - self.aliased + self.temporary

    def __str__(self) -> str:
        text = (
            f"compiled for {self.shapes} in {self.seconds:.1f} s; per device {readable(self.peak)}: "
            f"arguments {readable(self.arguments)}, temporary {readable(self.temporary)}, "
            f"outputs {readable(self.outputs)} of which {readable(self.aliased)} reuse arguments; "
            f"{readable(self.flops, 'FLOP')} by XLA's count"
        )
        return text + (f"\ndonated buffers not usable: {self.unused_donations}" if self.unused_donations else "")


class CompiledStep:
    """A step ``fn(state, batch, *rest)`` as one executable per batch shape.

    ``CompiledStep(train_step, mesh, state_shardings, donate=True)`` returns new states in the state's own shardings;
    ``CompiledStep(eval_step, mesh, variable_shardings)`` returns whatever ``fn`` does, on every device.  Arguments
    after the batch (a teacher, a batch number) keep their mesh shardings, or go to every device.

    Attributes:
      fn, mesh, state_shardings: as given.
      on_compile: called with every new report.
      reports: one ``CompileReport`` per executable, in the order of compilation.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        mesh: Mesh,
        state_shardings: Any,
        *,
        donate: bool = False,
        on_compile: Callable[[CompileReport], None] | None = None,
    ) -> None:
        self.reports: list[CompileReport] = []
        self.mesh = mesh
        self.state_shardings = state_shardings
        self.fn = fn
        self._donate = donate
        self.on_compile = on_compile
        self._executables: dict[Any, Any] = {}

    @property
    def count(self) -> int:
        """Executables made so far."""
        return len(self.reports)

    def compile(self, state: Any, batch: Mapping[str, Any], *rest: Any) -> CompileReport:
        """Compiles for these arguments, arrays or ``ShapeDtypeStruct``s, without running; once per batch shape."""
        key = _signature(batch)
        if key not in self._executables:
            self._executables[key], report = self._build(state, batch, rest)
            self.reports.append(report)
            if self.on_compile:
                self.on_compile(report)
        return self.reports[list(self._executables).index(key)]

    def __call__(self, state: Any, batch: Mapping[str, Any], *rest: Any) -> Any:
        """Runs (dispatches) the step; a donated state must not be used again."""
        executable = self._executables.get(_signature(batch))
        if executable is None:
            self.compile(state, batch, *rest)
            executable = self._executables[_signature(batch)]
        return executable(state, batch, *rest)

    def _build(self, state: Any, batch: Mapping[str, Any], rest: tuple[Any, ...]) -> tuple[Any, CompileReport]:
        start = time.perf_counter()
        everywhere = NamedSharding(self.mesh, P())
        kept = [jax.tree.map(lambda x: _placed(x) or everywhere, r) for r in rest]
        jitted = jax.jit(
            self.fn,
            in_shardings=(self.state_shardings, batch_shardings(batch, self.mesh), *kept),
            out_shardings=(self.state_shardings, everywhere) if self._donate else everywhere,
            donate_argnums=(0,) if self._donate else (),
        )
        with jax.set_mesh(self.mesh), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            executable = jitted.lower(_abstract(state), _abstract(batch), *map(_abstract, rest)).compile()
        unused = "; ".join(str(w.message).split("\n")[0] for w in caught if "donated" in str(w.message))
        return executable, _report(executable, batch, time.perf_counter() - start, unused)


def _placed(x: Any) -> NamedSharding | None:
    sharding = getattr(x, "sharding", None)
    return sharding if isinstance(sharding, NamedSharding) else None


def _abstract(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def _signature(batch: Mapping[str, Any]) -> Any:
    return tuple((name, x.shape, x.dtype) for name, x in sorted(batch.items()))


def _report(executable: Any, batch: Mapping[str, Any], seconds: float, unused: str) -> CompileReport:
    shapes = ", ".join(f"{name} {'x'.join(map(str, x.shape))}" for name, x in sorted(batch.items()))
    memory = executable.memory_analysis()  # None on backends that do not plan memory
    cost = executable.cost_analysis() or {}
    return CompileReport(
        shapes=shapes,
        seconds=seconds,
        arguments=getattr(memory, "argument_size_in_bytes", 0),
        outputs=getattr(memory, "output_size_in_bytes", 0),
        aliased=getattr(memory, "alias_size_in_bytes", 0),
        temporary=getattr(memory, "temp_size_in_bytes", 0),
        flops=float(cost.get("flops", 0.0)),
        unused_donations=unused,
    )


def enable_compile_cache(path: str | os.PathLike[str] | None = None) -> Path:
    """Turns on XLA's persistent cache; call before the first compilation and after ``jax.distributed.initialize``.

    Args:
      path: folder that every host can write; default ``$JAX_COMPILATION_CACHE_DIR``, else the user's cache folder.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(path or os.environ.get("JAX_COMPILATION_CACHE_DIR") or home / "murmuration" / "xla").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return folder
