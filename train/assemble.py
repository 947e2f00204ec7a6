"""From a config to the objects of a run, all of them abstract: no parameter is allocated here."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
from jax.sharding import Mesh

from data.errors import UserError
from train import rng, sharding, trees
from train import state as states
from train.compile import CompiledStep, CompileReport
from train.components import bind, build, call, check_keys
from train.console import short
from train.ema import EmaSpec
from train.feed import HostBatch, host_view
from train.lora import LoraSpec, LoraTask, frozen
from train.optim import Optimizer, OptimSpec, make_optimizer
from train.state import TrainState
from train.step import make_train_step
from train.task import Task, Variables

Section = Mapping[str, Any]
Shapes = Mapping[str, tuple[Sequence[int], Any]]  # array name -> shape, dtype


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """The top-level keys of a config; see ``configs/base.py`` for what they mean."""

    seed: int
    steps: int
    task: Section
    model: Section
    data: Section
    optim: Section
    ema: Section
    lora: Section
    precision: Section
    accumulate: int
    skip_nonfinite: bool
    max_skipped: int
    mesh: Section
    log: Section
    evaluation: Section
    sample: Section
    checkpoint: Section
    profile: Section
    compile_cache: bool

    def __post_init__(self) -> None:
        check_keys(self.precision, "precision", "compute")
        check_keys(self.log, "log", "every", "tensorboard")
        check_keys(self.evaluation, "evaluation", "every", "batches", "params")
        check_keys(self.sample, "sample", "every")
        check_keys(self.profile, "profile", "start", "steps")
        choice = self.evaluation["params"]
        if choice not in ("ema", "raw"):
            raise UserError(
                f'config.evaluation.params is {choice!r}; expected "ema" (the first of ema.decays) or "raw"'
            )


class Data(Protocol):
    """What ``config.data.type`` constructs.

    Attributes:
      train: ``train[step]`` is this host's part of the batch of that step.
      evaluation: this host's parts of the held-out batches.
      shapes: of every global training batch there will be.
      report: what was found and what was left out, for people.
    """

    train: Any
    evaluation: Sequence[HostBatch]
    shapes: Sequence[Shapes]
    report: Any

    def write_assets(self, folder: str) -> None:
        """Writes what the model cannot be used without: vocabulary, tokenizer, signal settings."""
        ...


@dataclasses.dataclass(frozen=True)
class Parts:
    """What is trained and how, without any state.

    Attributes:
      averages: the running averages that are kept.
      average: name of the one that is evaluated and sampled from; None = the raw parameters.
      abstract: the state's shapes, with shardings.
      origin: shapes of the variables that this run can begin from, with shardings.
      optional: path regex of parameters in ``origin`` that may be missing there; they start fresh.
      check_assets: called with the assets that ``origin`` was trained with; raises ``UserError`` where they do not fit.
      teacher: run folder of the teacher, "" = none; its variables have the shapes of ``origin``.
      create: ``create(None)`` is a fresh state, ``create(variables)`` one around variables like ``origin``; both are
        sharded.
      summary: for people.
    """

    task: Task
    optimizer: Optimizer
    averages: tuple[EmaSpec, ...]
    average: str | None
    abstract: TrainState
    origin: Variables
    optional: str
    check_assets: Callable[[Path], None]
    teacher: str
    shardings: TrainState
    create: Callable[[Variables | None], TrainState]
    summary: str


def build_data(cfg: RunConfig, mesh: Mesh, kept: str = "") -> Data:
    """The data of a run.

    Its constructor may name ``seed``, ``host_index``, ``host_count``, ``row_multiple`` (rows of every global batch
    must be a multiple of it) and ``kept`` (folder with the assets of what this run began from) to be given them.
    """
    view = host_view(mesh)
    rows = mesh.shape["data"] * mesh.shape["fsdp"] * cfg.accumulate
    place = {"host_index": view.index, "host_count": view.count, "row_multiple": rows}
    return build(cfg.data, "data", seed=cfg.seed, kept=kept, **place)


def assemble(cfg: RunConfig, mesh: Mesh, shapes: Sequence[Shapes], assets: str) -> Parts:
    """Task, optimiser and the abstract state.

    The task's constructor may name ``model`` (the model's constructor with the section's keys filled in), ``assets``
    (folder), ``shapes`` (every global batch, abstract) and ``precision`` to be given them.
    """
    precision = cfg.precision["compute"]
    model = bind(cfg.model, "model")
    task: Task = build(cfg.task, "task", model=model, assets=assets, shapes=structs(shapes), precision=precision)
    whole, lora = task, call(LoraSpec, cfg.lora, "lora")
    if lora.rank:
        task = LoraTask(whole, lora, precision)
    variables = jax.eval_shape(task.init, jax.random.key(0))
    params = variables["params"]
    specs, coverage = sharding.param_specs(task.axes(), params, mesh)
    if lora.rank:
        specs |= sharding.param_specs(task.axes(), variables["stats"], mesh)[0]

    options = dict(cfg.optim)
    groups = options.pop("groups", {})
    spec = call(OptimSpec, options, "optim")
    optimizer = make_optimizer(spec, params, steps=cfg.steps, groups=groups, axes=task.axes())
    options = dict(cfg.ema)
    decays = options.pop("decays", ())
    if not all(isinstance(decay, float) for decay in decays):
        raise UserError(f"config.ema.decays is {decays}; expected numbers such as (0.999, 0.9999)")
    averages = tuple(call(EmaSpec, options, "ema", decay=decay) for decay in decays)

    fresh = functools.partial(states.create, task, optimizer, seed=cfg.seed, ema=averages, precision=precision)

    def around(variables: Variables) -> TrainState:
        key = rng.stream(cfg.seed, "init", 0)
        variables = _completed(variables, whole.init(key))
        if isinstance(task, LoraTask):
            variables = task.adapt(variables, key)
        return states.from_variables(variables, optimizer, ema=averages, precision=precision)

    abstract = jax.eval_shape(fresh)
    shardings = sharding.state_shardings(abstract, specs, mesh)
    abstract = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, shardings)

    def create(variables: Variables | None) -> TrainState:
        if variables is None:
            return sharding.init_sharded(fresh, shardings)
        return jax.jit(around, out_shardings=shardings)(variables)

    average = averages[0].name if cfg.evaluation["params"] == "ema" and averages else None
    summary = f"{_coverage(params, coverage)}\n{optimizer.summary}"
    origin: Variables = {"params": abstract.params, "stats": abstract.stats}
    if lora.rank:
        origin = frozen(origin)
        count = sum(leaf.size for leaf in jax.tree.leaves(variables["stats"]["base"]))
        summary = f"LoRA of rank {lora.rank} on {short(count)} frozen parameters: {summary}"
    optional, check = getattr(whole, "optional", ""), getattr(whole, "check_assets", lambda folder: None)
    teacher = getattr(whole, "teacher", "")
    return Parts(
        task, optimizer, averages, average, abstract, origin, optional, check, teacher, shardings, create, summary
    )


def compile_step(
    cfg: RunConfig,
    mesh: Mesh,
    parts: Parts,
    shapes: Sequence[Shapes],
    on_compile: Callable[[CompileReport], None] | None = None,
) -> CompiledStep:
    """The step, compiled for every batch shape there will be, the largest first: what does not fit fails at once."""
    step = make_train_step(
        parts.task,
        parts.optimizer,
        seed=cfg.seed,
        ema=parts.averages,
        accumulate=cfg.accumulate,
        precision=cfg.precision["compute"],
        skip_nonfinite=cfg.skip_nonfinite,
        mesh=mesh,
        param_shardings=parts.shardings.params,
    )
    compiled = CompiledStep(step, mesh, parts.shardings, donate=True, on_compile=on_compile)
    for batch in sorted(structs(shapes), key=lambda s: -sum(a.size for a in s.values())):
        compiled.compile(parts.abstract, batch, *([parts.origin] if parts.teacher else []))
    return compiled


def _completed(variables: Variables, fresh: Variables) -> Variables:
    """``variables`` with fresh parameters where it has none; what is not needed is never computed."""
    params = trees.flatten(fresh["params"]) | trees.flatten(variables["params"])
    return {"params": trees.unflatten(params), "stats": variables["stats"]}


def structs(shapes: Sequence[Shapes]) -> list[dict[str, jax.ShapeDtypeStruct]]:
    """Shapes of batches as JAX has them."""
    return [{name: jax.ShapeDtypeStruct(tuple(s), d) for name, (s, d) in batch.items()} for batch in shapes]


def plain(config: Any) -> Any:
    """A config as what JSON has: nested dicts, lists, scalars."""
    if isinstance(config, Mapping) or hasattr(config, "items"):
        return {str(key): plain(value) for key, value in config.items()}
    return [plain(value) for value in config] if isinstance(config, list | tuple) else config


def _coverage(params: Any, coverage: sharding.Coverage) -> str:
    """Count, memory, and whatever the sharding rules did not foresee."""
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    size = sum(row.bytes_per_device for row in coverage.rows)
    arrays = len(coverage.rows)
    lines = [
        f"{short(count)} parameters in {arrays} arrays, {trees.readable(size)} per device; "
        f"sharding rules cover {arrays - len(coverage.unmatched)} of {arrays}"
    ]
    lines += [f"  {row.path}: {row.note}" for row in coverage.rows if row.note]
    return "\n".join(lines)
