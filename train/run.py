"""The composition root: a config becomes objects, the objects become a run.  Nothing below sees a config."""

import contextlib
import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from data import pipeline
from data.errors import UserError
from train import flops
from train import state as states
from train.assemble import Data, Parts, RunConfig, assemble, build_data, compile_step, plain
from train.checkpoint import CheckpointStore, restore_variables, step_folders
from train.compile import CompiledStep, enable_compile_cache
from train.components import call
from train.console import Console
from train.feed import DeviceFeed, HostBatch, host_view, place
from train.hooks import Evaluate, Sample, Save
from train.loop import fit
from train.mesh import build_mesh, describe
from train.preempt import Preemption, Stop
from train.profiling import Profiler
from train.progress import Progress
from train.state import TrainState
from train.step import make_eval_step
from train.task import Variables
from train.workdir import ASSETS, CHECKPOINTS, check_config, claim, differences, resolve, write_assets, write_config
from train.writers import JsonlWriter, TensorBoardWriter, Writers


def train(
    config: Mapping[str, Any],
    workdir: str | Path,
    *,
    init_from: str | Path | None = None,
    allow_config_change: bool = False,
    console: Console | None = None,
) -> Stop | None:
    """Runs, or goes on with, the training that ``config`` describes.

    Args:
      config: nested dict with the keys of ``configs/base.py``; lists and tuples are the same.
      workdir: the run's folder; if it has checkpoints the run goes on from the newest sound one.
      init_from: a run folder or converted checkpoint whose parameters (averaged, if it keeps an average) begin this
        run; optimiser and step start afresh.  Sections of type "kept" and, where the data can, its vocabulary are taken
        from there.  Not read again when the run goes on.
      allow_config_change: go on although config or data differ from those that the run was started with.

    Returns:
      Why the run stopped before its last step; None when it is complete.

    Raises:
      UserError: anything that the person who started the run has to put right.
      Diverged: too many steps in a row had non-finite gradients.
    """
    workdir = Path(workdir).absolute()
    origin = workdir if step_folders(workdir / CHECKPOINTS) else init_from
    values = resolve(json.loads(json.dumps(plain(config))), origin)
    cfg: RunConfig = call(RunConfig, values, "")
    console = console or Console(enabled=jax.process_index() == 0)
    if cfg.compile_cache:
        enable_compile_cache()
    claim(workdir)
    with contextlib.ExitStack() as closing:
        closing.callback(console.close)
        store = _store(cfg, workdir)
        closing.callback(store.close)
        strict = store.exists() and not allow_config_change
        if strict:
            check_config(workdir, values)

        mesh = build_mesh(cfg.mesh)
        console.note(f"mesh: {describe(mesh)}; {jax.process_count()} process(es)")
        data = build_data(cfg, mesh, str(Path(origin) / ASSETS) if origin else "")
        console.note(str(data.report))
        parts = assemble(cfg, mesh, data.shapes, write_assets(workdir, data.write_assets, check=strict))
        console.note(parts.summary)
        run = _Run(cfg, workdir, console, mesh, data, parts)
        state, meta = _begin(run, store, init_from)
        teacher = _teacher(run)
        train_step = compile_step(cfg, mesh, parts, data.shapes, lambda report: console.note(str(report)))
        write_config(workdir, values)

        start = meta.get("step", 0)
        writers = _writers(run, start)
        closing.callback(writers.close)
        progress = _progress(run, start, writers)
        progress.load(meta.get("progress", {}))
        about = {
            "config_sha256": hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest(),
            "mesh": dict(mesh.shape),
            "evaluate_with": f"ema/{parts.average}" if parts.average else "raw",
            "batches": _batches(data),
            "lora": {"scale": run.cfg.lora["alpha"] / run.cfg.lora["rank"]} if run.cfg.lora["rank"] else None,
        }
        save = Save(cfg.checkpoint["every"], store, lambda: {**about, "progress": progress.state()})
        profiler = Profiler(workdir, **cfg.profile, note=console.note)
        closing.callback(profiler.close)
        evaluation = _evaluate(run, store, writers)
        if init_from and not store.exists():
            evaluation.finish(start, state)  # what the fine-tuning starts from
        feed = DeviceFeed(pipeline.loader(data.train, start), run.put)
        closing.callback(feed.close)
        with Preemption(agree_every=cfg.log["every"] or 10) as preemption:
            _, stop = fit(
                state,
                start=start,
                steps=cfg.steps,
                train_step=lambda state, batch: train_step(state, batch, *teacher),
                feed=feed,
                hooks=[evaluation, _sample(run, writers), save, profiler],
                save=save,
                progress=progress,
                preemption=preemption,
            )
        end = f"stopped by {stop.reason}, saved" if stop else f"done: {cfg.steps} steps"
        console.note(f"{end}; {train_step.count} executable(s) compiled for {len(data.shapes)} batch shape(s)")
    return stop


@dataclasses.dataclass(frozen=True)
class _Run:
    """What the parts of a run below are made from."""

    cfg: RunConfig
    workdir: Path
    console: Console
    mesh: Mesh
    data: Data
    parts: Parts

    @property
    def hosts(self) -> int:
        """How many processes share a batch."""
        return host_view(self.mesh).count

    @property
    def put(self) -> Callable[[HostBatch], dict[str, jax.Array]]:
        """Host batch -> global arrays."""
        return functools.partial(place, mesh=self.mesh, hosts=self.hosts)


def _begin(run: _Run, store: CheckpointStore, init_from: str | Path | None) -> tuple[TrainState, dict[str, Any]]:
    """The run's own checkpoint, else another's parameters, else chance; with the checkpoint's meta."""
    parts, note = run.parts, run.console.note
    if store.exists():
        tree, meta = store.restore(states.to_dict(parts.abstract))
        note(f"resumed from {store.folder / str(meta['step'])}")
        if meta.get("batches", _batches(run.data)) != _batches(run.data):
            note("warning: batches have other shapes than before, so the run goes on with other examples")
        return states.from_dict(tree), meta
    if init_from is None:
        if run.cfg.lora["rank"]:
            raise UserError("config.lora.rank is set, which adapts a trained model: give it as --init_from=DIR")
        return parts.create(None), {}
    theirs = Path(init_from) / ASSETS
    if theirs.is_dir() and (changed := differences(theirs, run.workdir / ASSETS)):
        parts.check_assets(theirs)
        note(f"warning: {', '.join(changed)} differ between {theirs} and this run: inputs may mean other things")
    variables, meta = restore_variables(init_from, parts.origin, optional=parts.optional)
    note(f"parameters from {init_from}, step {meta['step']}, {meta.get('evaluate_with', 'raw')}")
    return parts.create(variables), {}


def _teacher(run: _Run) -> list[Variables]:
    """The frozen variables that the loss learns from: one, or none."""
    if not run.parts.teacher:
        return []
    variables, meta = restore_variables(run.parts.teacher, run.parts.origin)
    run.console.note(f"teacher {run.parts.teacher}, step {meta['step']}, {meta.get('evaluate_with', 'raw')}")
    return [variables]


def _batches(data: Data) -> list[Any]:
    """Shapes of the batches, as JSON has them."""
    return [{name: list(shape) for name, (shape, _) in batch.items()} for batch in data.shapes]


def _store(cfg: RunConfig, workdir: Path) -> CheckpointStore:
    options = dict(cfg.checkpoint)
    every, best = options.pop("every", 0), options.pop("best_metric", "")
    if options.get("keep_best"):
        if not best:
            raise UserError("config.checkpoint.keep_best needs config.checkpoint.best_metric, an evaluation metric")
        interval = cfg.evaluation.get("every", 0)
        if not interval or every % interval:
            raise UserError(
                "config.checkpoint.keep_best compares evaluations: make checkpoint.every a multiple of "
                f"evaluation.every; they are {every} and {interval}"
            )
    folder, larger = workdir / CHECKPOINTS, best.startswith("-")
    return call(CheckpointStore, options, "checkpoint", folder=folder, larger_is_better=larger)


def _writers(run: _Run, start: int) -> Writers:
    if jax.process_index() != 0:
        return Writers()
    board = [TensorBoardWriter(run.workdir, start)] if run.cfg.log["tensorboard"] else []
    return Writers([JsonlWriter(run.workdir, start), *board])


def _progress(run: _Run, start: int, writers: Writers) -> Progress:
    task, hosts, peak = run.parts.task, run.hosts, flops.peak_flops()
    return Progress(
        start=start,
        steps=run.cfg.steps,
        every=run.cfg.log["every"],
        unit=task.unit,
        count=lambda batch: task.units(batch) * hosts,  # hosts have about equal parts
        work=task.flops,
        peak=peak and peak * jax.device_count(),
        max_skipped=run.cfg.max_skipped,
        writers=writers,
        console=run.console,
    )


def _evaluate(run: _Run, store: CheckpointStore, writers: Writers) -> Evaluate:
    cfg, average = run.cfg, run.parts.average
    best = cfg.checkpoint["best_metric"].removeprefix("-")

    def tell(step: int, means: Mapping[str, float]) -> None:
        writers.scalars(step, "eval", means)
        values = "  ".join(f"{name} {value:.4g}" for name, value in means.items())
        run.console.note(f"evaluation at step {step}: {values}")
        if best:
            if best not in means:
                raise UserError(f"config.checkpoint.best_metric is {best!r}; evaluation gives {', '.join(means)}")
            store.note_metric(step, means[best])

    batches = list(run.data.evaluation)
    batches = batches[: cfg.evaluation["batches"] or len(batches)]
    step = make_eval_step(run.parts.task, seed=cfg.seed, precision=cfg.precision["compute"])
    compiled = CompiledStep(step, run.mesh, run.parts.shardings.variables(average))
    return Evaluate(cfg.evaluation["every"], batches, compiled, average, run.put, tell)


def _sample(run: _Run, writers: Writers) -> Sample:
    return Sample(
        run.cfg.sample["every"],
        run.parts.task,
        next(iter(run.data.evaluation), None),
        run.parts.average,
        run.put,
        folder=run.workdir / "samples",
        seed=run.cfg.seed,
        writers=writers,
        console=run.console,
    )
