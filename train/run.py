"""The composition root: a config becomes objects, the objects become a run.  Nothing below sees a config."""

import contextlib
import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from data import pipeline
from data.errors import UserError
from train import flops
from train import state as states
from train.assemble import Data, Parts, RunConfig, assemble, build_data, compile_step, plain
from train.checkpoint import CheckpointStore, restore_variables
from train.compile import CompiledStep, enable_compile_cache
from train.components import call
from train.console import Console
from train.feed import DeviceFeed, host_view, place
from train.hooks import Evaluate, Sample, Save
from train.loop import fit
from train.mesh import build_mesh, describe
from train.preempt import Preemption, Stop
from train.profiling import Profiler
from train.progress import Progress
from train.step import make_eval_step
from train.workdir import ASSETS, check_config, differences, write_assets, write_config
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
        run; optimiser and step start afresh.
      allow_config_change: go on although config or data differ from those that the run was started with.

    Returns:
      Why the run stopped before its last step; None when it is complete.

    Raises:
      UserError: anything that the person who started the run has to put right.
      Diverged: too many steps in a row had non-finite gradients.
    """
    values = json.loads(json.dumps(plain(config)))
    cfg: RunConfig = call(RunConfig, values, "")
    workdir = Path(workdir).absolute()
    console = console or Console(enabled=jax.process_index() == 0)
    if cfg.compile_cache:
        enable_compile_cache()
    with contextlib.ExitStack() as closing:
        closing.callback(console.close)
        store, best = _store(cfg, workdir)
        closing.callback(store.close)
        resuming = store.exists()
        strict = resuming and not allow_config_change
        if strict:
            check_config(workdir, values)

        mesh = build_mesh(cfg.mesh)
        console.note(f"mesh: {describe(mesh)}; {jax.process_count()} process(es)")
        data = build_data(cfg, mesh)
        console.note(str(data.report))
        assets = write_assets(workdir, data.write_assets, check=strict)
        parts = assemble(cfg, mesh, data.shapes, assets)
        console.note(parts.summary)

        # The run's own checkpoint, else another's parameters, else chance.
        start, meta = 0, {}
        if resuming:
            tree, meta = store.restore(states.to_dict(parts.abstract))
            state, start = states.from_dict(tree), meta["step"]
            console.note(f"resumed from {store.folder / str(start)}")
        elif init_from is not None:
            state = parts.create(_foreign(parts, init_from, workdir, console))
        else:
            state = parts.create(None)
        train_step = compile_step(cfg, mesh, parts, data.shapes, lambda report: console.note(str(report)))
        write_config(workdir, values)

        put = functools.partial(place, mesh=mesh, hosts=host_view(mesh).count)
        writers = _writers(cfg, workdir, start)
        closing.callback(writers.close)
        progress = _progress(cfg, parts, put.keywords["hosts"], start, writers, console)
        progress.load(meta.get("progress", {}))
        profiler = Profiler(workdir, **cfg.profile, note=console.note)
        closing.callback(profiler.close)
        about = {
            "config_sha256": hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest(),
            "mesh": dict(mesh.shape),
            "evaluate_with": f"ema/{parts.average}" if parts.average else "raw",
        }
        save = Save(cfg.checkpoint["every"], store, lambda: {**about, "progress": progress.state()})
        tell = functools.partial(_tell, store=store, best=best, writers=writers, console=console)
        hooks = [
            _evaluate(cfg, mesh, parts, data, put, tell),
            _sample(cfg, parts, data, put, workdir, writers, console),
            save,
            profiler,
        ]
        feed = DeviceFeed(pipeline.loader(data.train, start), put)
        closing.callback(feed.close)
        with Preemption(agree_every=cfg.log["every"]) as preemption:
            _, stop = fit(
                state,
                start=start,
                steps=cfg.steps,
                train_step=train_step,
                feed=feed,
                hooks=hooks,
                save=save,
                progress=progress,
                preemption=preemption,
            )
        end = f"stopped by {stop.reason}, saved" if stop else f"done: {cfg.steps} steps"
        console.note(f"{end}; {train_step.count} executable(s) compiled for {len(data.shapes)} batch shape(s)")
    return stop


def _store(cfg: RunConfig, workdir: Path) -> tuple[CheckpointStore, str]:
    """The store, and the metric by which it keeps the best (empty: none)."""
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
    folder, larger = workdir / "checkpoints", best.startswith("-")
    return call(CheckpointStore, options, "checkpoint", folder=folder, larger_is_better=larger), best.removeprefix("-")


def _foreign(parts: Parts, folder: str | Path, workdir: Path, console: Console) -> Any:
    """Parameters of another run, and a warning if its symbols are not ours."""
    wanted = {"params": parts.abstract.params, "stats": parts.abstract.stats}
    variables, meta = restore_variables(folder, wanted)
    console.note(f"parameters from {folder}, step {meta['step']}, {meta.get('evaluate_with', 'raw')}")
    theirs = Path(folder) / ASSETS
    if theirs.is_dir() and (changed := differences(theirs, workdir / ASSETS)):
        console.note(
            f"warning: {', '.join(changed)} differ between {theirs} and this run: inputs may mean other things"
        )
    return variables


def _writers(cfg: RunConfig, workdir: Path, start: int) -> Writers:
    if jax.process_index() != 0:
        return Writers()
    return Writers(
        [JsonlWriter(workdir, start), *([TensorBoardWriter(workdir, start)] if cfg.log["tensorboard"] else [])]
    )


def _progress(cfg: RunConfig, parts: Parts, hosts: int, start: int, writers: Writers, console: Console) -> Progress:
    peak = flops.peak_flops()
    return Progress(
        start=start,
        steps=cfg.steps,
        every=cfg.log["every"],
        unit=parts.task.unit,
        count=lambda batch: parts.task.units(batch) * hosts,  # hosts have about equal parts
        work=parts.task.flops,
        peak=peak and peak * jax.device_count(),
        max_skipped=cfg.max_skipped,
        writers=writers,
        console=console,
    )


def _evaluate(cfg: RunConfig, mesh: Any, parts: Parts, data: Data, put: Any, tell: Any) -> Evaluate:
    batches = list(data.evaluation)
    batches = batches[: cfg.evaluation["batches"] or len(batches)]
    step = make_eval_step(parts.task, seed=cfg.seed, precision=cfg.precision["compute"])
    compiled = CompiledStep(step, mesh, parts.shardings.variables(parts.average))
    return Evaluate(cfg.evaluation["every"], batches, compiled, parts.average, put, tell)


def _sample(
    cfg: RunConfig, parts: Parts, data: Data, put: Any, workdir: Path, writers: Writers, console: Console
) -> Sample:
    return Sample(
        cfg.sample["every"],
        parts.task,
        next(iter(data.evaluation), None),
        parts.average,
        put,
        folder=workdir / "samples",
        seed=cfg.seed,
        writers=writers,
        console=console,
    )


def _tell(
    step: int, means: Mapping[str, float], *, store: CheckpointStore, best: str, writers: Writers, console: Console
) -> None:
    """Results of one evaluation to wherever they are wanted."""
    writers.scalars(step, "eval", means)
    console.note(f"evaluation at step {step}: " + "  ".join(f"{name} {value:.4g}" for name, value in means.items()))
    if best:
        if best not in means:
            raise UserError(f"config.checkpoint.best_metric is {best!r}; evaluation gives {', '.join(means)}")
        store.note_metric(step, means[best])
