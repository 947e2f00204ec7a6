"""Checkpoints: asynchronous, sealed with checksums, checked before they are believed.  The only file that knows orbax.

A checkpoint is ``<folder>/<step>/``: item ``state`` (nested dict of arrays), item ``meta`` (JSON), and our seal (see
``train/integrity.py``), written last.  Step n holds the state after n updates.  A step without a seal, or with one that
does not match, is set aside under the name ``<step>.damaged`` and the one before it is used instead.
"""

import functools
import importlib.metadata
import json
import logging
import re
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import Sharding, SingleDeviceSharding

from data.errors import UserError
from train import integrity, lora, trees
from train.workdir import CHECKPOINTS

log = logging.getLogger(__name__)
Tree = dict[str, Any]
FORMAT = 1  # of our own part: item names, meta, seal


class CheckpointStore:
    """The checkpoints of one run.  Every process of the run makes the same calls in the same order.

    Args:
      folder: ``<workdir>/checkpoints``; made at the first save.
      keep_latest: how many of the newest steps stay, at least 1.
      keep_every: steps divisible by it stay for ever; 0 = none.
      keep_best: how many steps with the best metric stay; steps without a metric do not compete.
      larger_is_better: the direction of the metric.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        keep_latest: int = 2,
        keep_every: int = 0,
        keep_best: int = 0,
        larger_is_better: bool = False,
    ) -> None:
        if keep_latest < 1 or keep_every < 0 or keep_best < 0:
            raise UserError("config.checkpoint: need keep_latest >= 1, keep_every >= 0 and keep_best >= 0")
        self.folder = Path(folder).absolute()  # orbax fails on a relative path, and only in a background thread
        self._policy = {
            "latest": keep_latest, "every": keep_every, "best": keep_best, "larger_is_better": larger_is_better
        }  # fmt: skip
        self._manager: ocp.CheckpointManager | None = None
        self._sealing: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._saving = -1
        self._metrics: dict[int, float] = {}

    def save(self, step: int, tree: Tree, meta: Mapping[str, Any]) -> bool:
        """Starts writing; returns once ``tree``'s buffers may be donated.  False if the step is there already.

        Raises:
          CheckpointError: this save, or the one before it, could not be written.
        """
        self.wait()
        if step in self.steps():
            return False
        self._saving = step
        self._check_room(tree)
        args = ocp.args.Composite(
            state=ocp.args.PyTreeSave(tree), meta=ocp.args.JsonSave({**meta, **describe(step, tree)})
        )
        try:
            self._open().save(step, args=args, force=True)
        except Exception as error:
            self._failure = error
            self.check()
        self._sealing = threading.Thread(target=self._seal, args=(step,), name=f"seal-{step}")
        self._sealing.start()
        return True

    def note_metric(self, step: int, value: float) -> None:
        """Tells the value by which ``keep_best`` compares; before or after the save of that step."""
        self._metrics[step] = value
        self.wait()
        if jax.process_index() == 0 and integrity.sealed(self.folder / str(step)):
            integrity.annotate(self.folder / str(step), {"metric": value})

    def check(self) -> None:
        """Raises what went wrong in the background, if anything did; cheap, called at every step.

        Raises:
          CheckpointError: the save under way has failed; everything saved before it is untouched.
        """
        if self._failure is None:
            return
        error, self._failure = self._failure, None
        if jax.process_index() == 0:
            self._remove_unfinished(self._saving)
        raise CheckpointError(
            f"checkpoint {self.folder / str(self._saving)} could not be written ({_reason(error)}); "
            f"intact checkpoints: {', '.join(map(str, self.steps())) or 'none'}; "
            "make room and run the same command again to go on from the newest"
        ) from error

    def wait(self) -> None:
        """Blocks until nothing is being written, in any process.

        Raises:
          CheckpointError: see ``check``.
        """
        if self._sealing is not None:
            self._sealing.join()
            self._sealing = None
            self.check()
            if jax.process_count() > 1:
                multihost_utils.sync_global_devices("checkpoint sealed")
        self.check()

    def close(self) -> None:
        """Waits and frees the background threads."""
        try:
            self.wait()
        finally:
            manager, self._manager = self._manager, None
            if manager is not None:
                try:
                    manager.close()
                except Exception:  # a failed save, which ``wait`` has reported, is raised here once more
                    manager.close()
                    if jax.process_index() == 0:
                        self._remove_unfinished(self._saving)

    def steps(self) -> list[int]:
        """Steps whose writing came to its end, oldest first."""
        return [step for step in step_folders(self.folder) if integrity.sealed(self.folder / str(step))]

    def exists(self) -> bool:
        """Whether anything was ever saved here, sound or not."""
        return bool(step_folders(self.folder))

    def restore(self, abstract: Tree) -> tuple[Tree, dict[str, Any]]:
        """The newest sound checkpoint; damaged ones on the way are set aside, loudly.

        Args:
          abstract: ``ShapeDtypeStruct`` leaves with the shardings of *today's* mesh; the mesh it was saved on does not
            matter.

        Raises:
          UserError: there is none, all are damaged, or the newest sound one holds another model.
        """
        step = self._choose()
        folder = self.folder / str(step)
        meta = read_meta(folder)
        _compare(folder, meta["arrays"], abstract, complete=True)
        return _read(folder, abstract), meta

    def _check_room(self, tree: Tree) -> None:
        """Better one clear refusal than a save that fails half-way."""
        needed = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            self._failure = OSError(f"it takes {trees.readable(needed)} and the disk has {trees.readable(free)} left")
            self.check()

    def _open(self) -> ocp.CheckpointManager:
        if self._manager is None:
            options = ocp.CheckpointManagerOptions(cleanup_tmp_directories=True, save_root_metadata=False)
            handlers = {"state": ocp.PyTreeCheckpointHandler(), "meta": ocp.JsonCheckpointHandler()}
            for name in ("absl", "asyncio"):
                logging.getLogger(name).addFilter(_not_orbax)
            self._manager = ocp.CheckpointManager(self.folder, options=options, item_handlers=handlers)
        return self._manager

    def _seal(self, step: int) -> None:
        try:
            assert self._manager is not None
            self._manager.wait_until_finished()
            if jax.process_index() == 0:
                metric = self._metrics.get(step)
                integrity.seal(self.folder / str(step), {} if metric is None else {"metric": metric})
                self._prune()
        except BaseException as error:
            self._failure = error

    def _prune(self) -> None:
        steps = self.steps()
        notes = {step: integrity.note(self.folder / str(step)) for step in steps}
        metrics = {step: note["metric"] for step, note in notes.items() if "metric" in note}
        keep = kept(steps, metrics, **self._policy)
        for step in steps:
            if step not in keep:  # renamed first: a folder half deleted must not look like a damaged checkpoint
                (self.folder / str(step)).rename(self.folder / f"{step}.deleted")
        for rest in self.folder.glob("*.deleted"):
            shutil.rmtree(rest, ignore_errors=True)

    def _remove_unfinished(self, step: int) -> None:
        """Removes what a failed save has left, so that its room is free again."""
        clear = 0
        for _ in range(50):
            rests = [*self.folder.glob(f"{step}.orbax-checkpoint-tmp*"), self.folder / str(step)]
            rests = [rest for rest in rests if rest.exists() and not integrity.sealed(rest)]
            clear = 0 if rests else clear + 1
            if clear == 3:
                return
            for rest in rests:
                shutil.rmtree(rest, ignore_errors=True)
            time.sleep(0.05)  # threads that do not know yet of the failure may put a file where we have just been

    def _choose(self) -> int:
        """Process 0 looks and moves; all processes get its choice."""
        step, failure = -1, UserError(f"process 0 found no checkpoint in {self.folder} that can be used")
        if jax.process_index() == 0:
            try:
                step, damaged = _newest_sound(self.folder)
                for other in damaged:
                    aside = self.folder / f"{other}.damaged"
                    shutil.rmtree(aside, ignore_errors=True)
                    (self.folder / str(other)).rename(aside)
                    log.warning("checkpoint %s was renamed to %s", self.folder / str(other), aside.name)
            except UserError as error:
                failure = error
        if jax.process_count() > 1:
            step = int(multihost_utils.broadcast_one_to_all(np.int32(step)))
        if step < 0:
            raise failure
        return step


class CheckpointError(UserError):
    """A checkpoint could not be written."""


def restore_variables(
    workdir: str | Path,
    abstract: Tree | None = None,
    *,
    params: str = "ema",
    step: int | None = None,
    optional: str = "",
) -> tuple[Tree, dict[str, Any]]:
    """Only what a model needs to be applied, from a run folder or a converted checkpoint; changes nothing on disk.

    Of a LoRA run these are the model's own variables, the update added.

    Args:
      workdir: the folder that has ``checkpoints/``.
      abstract: ``{"params", "stats"}`` of ``ShapeDtypeStruct`` (with or without shardings) to compare with; None takes
        what is there.
      params: "raw", "ema" (the average that the run evaluated with, or raw where it kept none), or "ema/<decay>".
      step: None is the newest sound one.
      optional: path regex of parameters that need not be on both sides; those that are not, are left out.

    Returns:
      ``{"params", "stats"}`` and the checkpoint's meta.

    Raises:
      UserError: nothing to restore, a damaged step, no such average, or another model than ``abstract``.
    """
    store = Path(workdir).absolute() / CHECKPOINTS
    if step is None:
        step, _ = _newest_sound(store)
    elif wrong := integrity.problem(store / str(step)):
        raise UserError(f"checkpoint {store / str(step)} cannot be used: {wrong}")
    folder = store / str(step)
    meta = read_meta(folder)
    source = _source(folder, meta, params)
    stored = {
        path.replace(source, "params", 1): spec
        for path, spec in meta["arrays"].items()
        if path.startswith((f"{source}/", "stats/"))
    }
    flat = {path: jax.ShapeDtypeStruct(tuple(shape), dtype) for path, (dtype, shape) in stored.items()}
    there: Tree = {"params": {}, "stats": {}} | trees.unflatten(flat)
    merge = functools.partial(lora.merged, scale=meta["lora"]["scale"]) if meta.get("lora") else None
    held = jax.eval_shape(merge, there) if merge else there
    if abstract is not None:
        abstract = {"params": abstract["params"], "stats": abstract.get("stats", {})}
        stored = {path: [str(a.dtype), list(a.shape)] for path, a in trees.flatten(held).items()}
        wanted = trees.flatten(abstract["params"])
        spare = {path for path in stored if re.fullmatch(f"params/({optional})", path)}
        stored = {path: spec for path, spec in stored.items() if path not in spare or path[len("params/") :] in wanted}
        abstract["params"] = trees.unflatten(
            {path: leaf for path, leaf in wanted.items()
             if f"params/{path}" in stored or not re.fullmatch(optional, path)}
        )  # fmt: skip
        _compare(folder, stored, abstract, complete=True)
    if merge:
        variables = jax.jit(merge)(_read_variables(folder, source, there))
        if abstract is not None:
            held = trees.flatten(variables["params"])
            variables["params"] = trees.map_with_path(lambda path, _: held[path], abstract["params"])
            variables = jax.tree.map(lambda a, w: jax.device_put(np.asarray(a), _home(w)), variables, abstract)
    else:
        variables = _read_variables(folder, source, held if abstract is None else abstract)
    return variables, meta


def kept(
    steps: Sequence[int],
    metrics: Mapping[int, float],
    *,
    latest: int,
    every: int = 0,
    best: int = 0,
    larger_is_better: bool = False,
) -> set[int]:
    """Which of ``steps`` stay: the newest, those divisible by ``every``, and the best by metric (ties: the older)."""
    ordered = sorted(steps)
    keep = set(ordered[-latest:])
    if every:
        keep |= {step for step in ordered if step % every == 0}
    ranked = [step for step in ordered if np.isfinite(metrics.get(step, np.nan))]
    ranked.sort(key=lambda step: -metrics[step] if larger_is_better else metrics[step])
    return keep | set(ranked[:best])


def describe(step: int, tree: Tree) -> dict[str, Any]:
    """The part of meta that the store adds: what is in ``tree``, when, and by which versions."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {
        "format": FORMAT,
        "step": step,
        "time": time.time(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "processes": jax.process_count(),
        "devices": jax.device_count(),
        "arrays": {path: [str(a.dtype), list(a.shape)] for path, a in trees.flatten(tree).items()},
    }


def step_folders(folder: Path) -> list[int]:
    """Steps that have a folder, finished or not, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(int(p.name) for p in folder.iterdir() if p.is_dir() and p.name.isdecimal())


def read_meta(folder: Path) -> dict[str, Any]:
    """The JSON item of one checkpoint.

    Raises:
      UserError: written by another version of this code.
    """
    meta = json.loads((folder / "meta" / "metadata").read_text(encoding="utf-8"))
    if meta.get("format") != FORMAT:
        raise UserError(f"checkpoint {folder} has format {meta.get('format')}; this code reads format {FORMAT}")
    return meta


def _newest_sound(folder: Path) -> tuple[int, list[int]]:
    """The newest step that is as it was sealed, and the damaged ones after it."""
    wrong: dict[int, str] = {}
    for step in reversed(step_folders(folder)):
        path = folder / str(step)
        if (problem := integrity.problem(path)) is None:
            if wrong:
                log.warning("going back to checkpoint %s", path)
            return step, list(wrong)
        wrong[step] = problem
        log.warning("checkpoint %s cannot be used: %s", path, problem)
    if wrong:
        found = "; ".join(f"{step}: {problem}" for step, problem in wrong.items())
        raise UserError(f"no checkpoint in {folder} can be used ({found}); restore a copy of it, or use another folder")
    raise UserError(f"{folder.parent} has no checkpoint; train into it first, or name a folder that has checkpoints/")


def _compare(folder: Path, stored: Mapping[str, Any], abstract: Tree, complete: bool) -> None:
    """Orbax casts to another dtype without a word, so everything is compared before anything is read."""
    wanted = {path: [str(a.dtype), list(a.shape)] for path, a in trees.flatten(abstract).items()}
    differences = [f"{p} is {_show(stored[p])} there and {_show(s)} here" for p, s in wanted.items()
                   if p in stored and list(stored[p]) != s]  # fmt: skip
    differences += [f"{path} is not in it" for path in wanted if path not in stored]
    if complete:
        differences += [f"{path} is only in it" for path in stored if path not in wanted]
    if differences:
        more = f" (and {len(differences) - 3} more)" if len(differences) > 3 else ""
        raise UserError(f"checkpoint {folder} is of another configuration: {'; '.join(differences[:3])}{more}")


def _source(folder: Path, meta: Mapping[str, Any], params: str) -> str:
    averages = sorted({"/".join(path.split("/")[:2]) for path in meta["arrays"] if path.startswith("ema/")})
    if params == "ema":
        params = meta.get("evaluate_with") or (averages[0] if averages else "raw")
    if params == "raw":
        return "params"
    if params not in averages:
        raise UserError(f"checkpoint {folder} has no {params!r}; it has {', '.join(['raw', *averages])}")
    return params


def _read_variables(folder: Path, source: str, abstract: Tree) -> Tree:
    """Parameters from where ``source`` says they are, "params" or "ema/<decay>", and statistics."""
    wanted: Tree = {"stats": abstract["stats"]}
    if source == "params":
        wanted["params"] = abstract["params"]
    else:
        wanted["ema"] = {source.removeprefix("ema/"): abstract["params"]}
    tree = _read(folder, wanted)
    found = tree["params"] if source == "params" else tree["ema"][source.removeprefix("ema/")]
    return {"params": found, "stats": tree["stats"]}


def _read(folder: Path, abstract: Tree) -> Tree:
    """The arrays of ``abstract`` out of a checkpoint that may hold more, on the shardings that ``abstract`` carries."""
    flat = {
        path: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=_home(a)) for path, a in trees.flatten(abstract).items()
    }
    item = trees.unflatten(flat)  # without empty dicts, which orbax need not have stored
    args = ocp.args.PyTreeRestore(
        item, restore_args=ocp.checkpoint_utils.construct_restore_args(item), partial_restore=True
    )
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        found = trees.flatten(reader.restore(folder / "state", args=args)) if flat else {}
    return jax.tree_util.tree_map_with_path(lambda keys, _: found["/".join(k.key for k in keys)], abstract)


def _home(abstract: Any) -> Sharding:
    """Where an array is wanted; by default on this process's first device."""
    return getattr(abstract, "sharding", None) or SingleDeviceSharding(jax.local_devices()[0])


def _not_orbax(record: logging.LogRecord) -> bool:
    """Orbax logs one failed write as many errors with tracebacks; we raise it once, in words."""
    return record.levelno >= logging.CRITICAL or "orbax" not in record.pathname + record.getMessage()


def _show(spec: Sequence[Any]) -> str:
    dtype, shape = spec
    return f"{dtype}[{','.join(map(str, shape))}]"


def _reason(error: BaseException) -> str:
    """The first line that says something, of an error that may hold a page of C++ locations."""
    text = str(error).strip()
    for known in ("No space left on device", "File too large", "Disk quota exceeded", "Permission denied"):
        if known in text:
            return known
    return (text.splitlines() or [type(error).__name__])[0][:300]
