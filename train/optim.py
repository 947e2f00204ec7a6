"""The optimiser: parameter groups by path regex, each with its own rule, schedule, weight decay and clip.

``make_optimizer`` decides everything on the abstract parameters before the run: which group a parameter is in, which
rule updates it, whether it decays.  The state is plain nested dicts, ``{group: {rule: {moment: tree}}}``, so
checkpoints and sharding see the parameters' own paths in it.  The mathematics of each rule is optax's (Muon's is ours,
``train/muon.py``); AdamW equals torch's to rounding, the clip uses torch's ``max_norm / (norm + 1e-6)``.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from data.errors import UserError
from train import muon
from train.schedule import Schedule, make_schedule
from train.task import AxisRules
from train.trees import flatten, readable, unflatten

RULES = ("adamw", "muon", "sgd")
DEFAULT = "default"  # name of the group that takes what no other group matches


@dataclasses.dataclass(frozen=True)
class OptimSpec:
    """How one group of parameters is optimised; the fields are the keys of the config section ``optim``.

    ``muon`` updates matrices (and stacks of them) by Muon and the group's other parameters, embeddings included, by
    AdamW.  Weight decay is decoupled (AdamW's): ``p -= lr * (update + weight_decay * p)`` for every rule.
    """

    optimizer: str = "adamw"
    lr: float = 1e-3
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    momentum: float = 0.95  # of muon and sgd
    muon_scale: str = "rms"  # rms | shape, see train/muon.py
    muon_lr_ratio: float = 1.0  # learning rate of Muon's matrices / lr
    weight_decay: float = 0.0
    decay_match: str = ".*"
    clip_norm: float = 1.0
    schedule: str = "cosine"
    milestones: tuple[int, ...] = ()
    warmup_steps: int = 0
    init_lr_ratio: float = 1e-8
    final_lr_ratio: float = 0.0
    match: str = ""  # path regex of a group; the default group has none

    def __post_init__(self) -> None:
        if self.optimizer not in RULES:
            raise UserError(f"optim.optimizer={self.optimizer!r} is not known; choose one of {', '.join(RULES)}")
        if self.muon_scale not in muon.SCALES:
            raise UserError(f"optim.muon_scale={self.muon_scale!r} is not known; choose {' or '.join(muon.SCALES)}")


@dataclasses.dataclass(frozen=True)
class Group:
    """A resolved group: its specification, its paths by rule, the paths that decay, its schedule."""

    name: str
    spec: OptimSpec
    rules: dict[str, tuple[str, ...]]  # rule -> paths
    decayed: frozenset[str]
    schedule: Schedule

    @property
    def paths(self) -> tuple[str, ...]:
        """All paths of the group."""
        return tuple(path for paths in self.rules.values() for path in paths)


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """``init`` and ``update`` in optax's manner; ``update`` is told the step, which the learning rates follow."""

    groups: tuple[Group, ...]
    clips: tuple[tuple[str, float, frozenset[str]], ...]  # (metric name, largest norm, paths clipped together)
    summary: str  # one line per group and rule
    report: str  # one line per parameter: path, group, rule, decay or not

    def init(self, params: dict[str, Any]) -> dict[str, Any]:
        """State of update 0."""
        flat = flatten(params)
        return {
            g.name: {r: _transform(r, g.spec).init(_subset(flat, paths)) for r, paths in g.rules.items()}
            for g in self.groups
        }

    def update(
        self, grads: dict[str, Any], state: dict[str, Any], params: dict[str, Any], step: jax.Array
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, jax.Array]]:
        """Updates to add to the parameters, the new state, and scalars to log (norms before clipping, learning rates).

        Args:
          grads: float32 gradients, a tree like ``params``.
          step: int32 scalar, number of the update (0 for the first).
        """
        flat_grads, info = self._clip(flatten(grads))
        flat_params = flatten(params)
        updates, new_state = {}, {}
        for group in self.groups:
            lr = group.schedule(step)
            info["lr" if group.name == DEFAULT or len(self.groups) == 1 else f"lr/{group.name}"] = jnp.float32(lr)
            new_state[group.name] = {}
            for rule, paths in group.rules.items():
                transform = _transform(rule, group.spec)
                rate = lr * group.spec.muon_lr_ratio if rule == "muon" else lr
                raw: Any
                raw, new_state[group.name][rule] = transform.update(
                    _subset(flat_grads, paths), state[group.name][rule], _subset(flat_params, paths)
                )
                for path, u in flatten(raw).items():
                    decay = group.spec.weight_decay if path in group.decayed else 0.0
                    updates[path] = -rate * (u + decay * flat_params[path] if decay else u)
        return unflatten({path: updates[path] for path in flat_params}), new_state, info

    def _clip(self, grads: dict[str, jax.Array]) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        squares = {path: jnp.sum(jnp.square(g)) for path, g in grads.items()}
        info = {"grad_norm": jnp.sqrt(sum(squares.values()))}
        for name, largest, paths in self.clips:
            norm = jnp.sqrt(sum(squares[path] for path in grads if path in paths))
            if len(self.clips) > 1:
                info[name] = norm
            if largest > 0:
                factor = jnp.minimum(1.0, largest / (norm + 1e-6))
                grads = {path: g * factor if path in paths else g for path, g in grads.items()}
        return grads, info


def make_optimizer(
    spec: OptimSpec,
    params: dict[str, Any],
    *,
    steps: int,
    groups: Mapping[str, Mapping[str, Any]] | None = None,
    axes: AxisRules = (),
) -> Optimizer:
    """Resolves groups against the (abstract) parameters.

    Args:
      spec: the defaults, which also optimise whatever no group matches.
      params: parameters or their ``ShapeDtypeStruct``s.
      steps: updates in the whole run, where schedules end.
      groups: name -> fields that differ from ``spec``, among them ``match``.  A group that sets ``clip_norm`` is
        clipped by its own norm; all others are clipped together by theirs.
      axes: the model's logical axes; Muon needs them to tell a stack of matrices (``layers`` first) from a convolution,
        and an embedding (``vocab``) from a matrix.

    Raises:
      UserError: unknown key, bad regex, a parameter in two groups, a group or a decay regex that matches nothing.
    """
    flat = flatten(params)
    members = _assign(flat, groups or {})
    resolved, own_clip = [], {}
    for name, paths in members.items():
        overrides = dict((groups or {}).get(name, {}))
        group_spec = _override(spec, name, overrides)
        if "clip_norm" in overrides:
            own_clip[name] = group_spec.clip_norm
        resolved.append(_resolve(name, group_spec, paths, flat, steps, axes))
    joint = frozenset(path for g in resolved if g.name not in own_clip for path in g.paths)
    clips = [(f"grad_norm/{DEFAULT}", spec.clip_norm, joint)] if joint else []
    clips += [(f"grad_norm/{g.name}", own_clip[g.name], frozenset(g.paths)) for g in resolved if g.name in own_clip]
    return Optimizer(tuple(resolved), tuple(clips), *_report(resolved, flat))


def _override(spec: OptimSpec, name: str, overrides: Mapping[str, Any]) -> OptimSpec:
    known = [f.name for f in dataclasses.fields(OptimSpec)]
    for key in overrides:
        if key not in known:
            raise UserError(f"optim.groups.{name}.{key} is not a key; a group may set {', '.join(known)}")
    return dataclasses.replace(spec, **overrides)


def _assign(flat: Mapping[str, Any], groups: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """Paths of each group, in the order of the parameters; every parameter is in exactly one."""
    members: dict[str, list[str]] = {name: [] for name in (*groups, DEFAULT)}
    if DEFAULT in groups:
        raise UserError(f"optim.groups.{DEFAULT}: this name is taken by what no group matches; choose another one")
    regexes = {name: _compile(f"optim.groups.{name}.match", str(g.get("match", ""))) for name, g in groups.items()}
    for path in flat:
        hits = [name for name, regex in regexes.items() if regex.fullmatch(path)]
        if len(hits) > 1:
            raise UserError(
                f"optim.groups: parameter {path} is matched by {' and '.join(hits)}; groups must not overlap"
            )
        members[hits[0] if hits else DEFAULT].append(path)
    for name in groups:
        if not members[name]:
            raise UserError(_nothing(f"optim.groups.{name}.match={groups[name].get('match', '')!r}", flat))
    return {name: paths for name, paths in members.items() if paths}


def _resolve(
    name: str, spec: OptimSpec, paths: Sequence[str], flat: Mapping[str, Any], steps: int, axes: AxisRules
) -> Group:
    decays = _compile("optim.decay_match", spec.decay_match)
    if spec.weight_decay and not any(decays.fullmatch(path) for path in flat):
        raise UserError(_nothing(f"optim.decay_match={spec.decay_match!r}", flat))
    decayed = frozenset(path for path in paths if spec.weight_decay and decays.fullmatch(path))
    rules: dict[str, list[str]] = {}
    for path in paths:
        rule = spec.optimizer
        if rule == "muon" and not _is_matrix(path, flat[path].shape, axes):
            rule = "adamw"
        rules.setdefault(rule, []).append(path)
    schedule = make_schedule(
        spec.schedule,
        spec.lr,
        total=steps,
        warmup=spec.warmup_steps,
        init_ratio=spec.init_lr_ratio,
        final_ratio=spec.final_lr_ratio,
        milestones=spec.milestones,
    )
    return Group(name, spec, {rule: tuple(paths) for rule, paths in rules.items()}, decayed, schedule)


def _is_matrix(path: str, shape: tuple[int, ...], axes: AxisRules) -> bool:
    """A kernel ``[in, out]``, or a stack of them, that is neither an embedding nor a convolution."""
    logical = next((names for regex, names in axes if re.fullmatch(regex, path)), None)
    if logical is None:
        return len(shape) == 2
    kept = [name for name in logical if name != "layers"]
    return len(kept) == 2 and not {"vocab", "conv"} & set(kept)


def _transform(rule: str, spec: OptimSpec) -> optax.GradientTransformation:
    if rule == "muon":
        return muon.scale_by_muon(spec.momentum, scale=spec.muon_scale)
    if rule == "sgd":
        return _plain(optax.trace(spec.momentum), optax.TraceState)
    return _plain(optax.scale_by_adam(spec.b1, spec.b2, spec.eps), optax.ScaleByAdamState)


def _plain(transform: optax.GradientTransformation, state_type: Any) -> optax.GradientTransformation:
    """The transformation with its named tuple of a state as a dict."""

    def init(params: Any) -> Any:
        return transform.init(params)._asdict()  # type: ignore[union-attr]

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        out, new = transform.update(updates, state_type(**state), params)
        return out, new._asdict()  # type: ignore[union-attr]

    return optax.GradientTransformation(init, update)


def _subset(flat: Mapping[str, Any], paths: Sequence[str]) -> dict[str, Any]:
    return unflatten({path: flat[path] for path in paths})


def _compile(key: str, regex: str) -> re.Pattern[str]:
    try:
        return re.compile(regex)
    except re.error as error:
        raise UserError(f"{key}={regex!r} is not a regular expression: {error}") from None


def _nothing(what: str, paths: Any) -> str:
    some = ", ".join(list(paths)[:3])
    return f"{what} matches no parameter; a regex must match the whole path, such as {some}"


def _report(groups: Sequence[Group], flat: Mapping[str, Any]) -> tuple[str, str]:
    """Summary and report of an ``Optimizer``."""
    totals, rows = [], []
    for g in groups:
        for rule, paths in g.rules.items():
            count = readable(sum(int(flat[path].size) for path in paths), "").strip()
            totals.append(f"group {g.name}: {count} parameters in {len(paths)} arrays by {rule}, peak lr {g.spec.lr:g}")
            rows += [(path, g.name, rule, "decay" if path in g.decayed else "no decay") for path in paths]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in sorted(rows)]
    return "\n".join(totals), "\n".join(lines)
