"""Low-rank adaptation (Hu et al. 2021, arXiv:2106.09685) as a map from dicts to dicts: no model knows of it.

A kernel ``W [..., in, out]`` becomes ``W + scale · a b`` with ``a [..., in, rank]`` and ``b [..., rank, out]``; leading
axes are a stack, of layers mostly.  The sum is made before the network runs, so the network, the sampler and every
export see plain parameters, and a merged model costs what its base does.

The variables of such a run::

    params/lora/<path>/{a,b}   trained, averaged, with moments
    params/own/<path>          parameters that are trained whole (``LoraSpec.train``); absent where there are none
    stats/base/<path>          the frozen rest, saved with the run, so that its checkpoints stand alone
    stats/model/...            the model's own running statistics; absent where it has none
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from data.errors import UserError
from train import scaling, trees
from train.task import AxisRules, Batch, LossOutput, StepContext, Task, Variables

Tree = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class LoraSpec:
    """What is adapted and how; the fields are the keys of the config section ``lora``.

    Attributes:
      rank: of the update; 0 = no LoRA, everything is trained.
      alpha: the update is multiplied by ``alpha / rank``, so that the rank can change and the learning rate stay.
      match: path regex of the kernels that get an update.
      train: path regex of parameters that are trained whole beside them, the text embedding say; "" = none.
    """

    rank: int = 0
    alpha: float = 16.0
    match: str = ".*/kernel"
    train: str = ""

    def __post_init__(self) -> None:
        if self.rank < 0 or not self.alpha > 0:
            raise UserError(f"config.lora: need rank >= 0 and alpha > 0, got rank={self.rank}, alpha={self.alpha}")

    @property
    def scale(self) -> float:
        """Factor of the product of the two matrices."""
        return self.alpha / self.rank


def init(spec: LoraSpec, abstract_params: Mapping[str, Any], key: jax.Array) -> Tree:
    """Fresh factors ``{path: {"a", "b"}}``, float32: ``a`` as a dense layer begins, ``b`` zero, so the sum is the base.

    Args:
      abstract_params: the base's parameters, or their shapes.

    Raises:
      UserError: ``match`` is no regex, matches nothing or something that is no matrix, or ``rank`` is too large.
    """
    flat = trees.flatten(abstract_params)
    paths = _matching("match", spec.match, flat)
    factors = {}
    for path, own_key in zip(paths, jax.random.split(key, len(paths)), strict=True):
        shape = tuple(flat[path].shape)
        if len(shape) < 2:
            raise UserError(f"config.lora.match={spec.match!r} matches {path} of shape {shape}, which is no matrix")
        *stack, din, dout = shape
        if spec.rank > min(din, dout):
            raise UserError(f"config.lora.rank={spec.rank} is more than {path} of shape {shape} can have")
        bound = din**-0.5
        factors[f"{path}/a"] = jax.random.uniform(own_key, (*stack, din, spec.rank), jnp.float32, -bound, bound)
        factors[f"{path}/b"] = jnp.zeros((*stack, spec.rank, dout), jnp.float32)
    return trees.unflatten(factors)


def merge(params: Mapping[str, Any], lora: Mapping[str, Any], scale: float) -> Tree:
    """``params`` with every adapted kernel replaced by ``W + scale · a b``, in the kernel's own type."""
    flat, factors = trees.flatten(params), trees.flatten(lora)
    for path in dict.fromkeys(name.rpartition("/")[0] for name in factors):
        a, b = (factors[f"{path}/{side}"].astype(jnp.float32) for side in "ab")
        update = scale * jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
        flat[path] = flat[path] + update.astype(flat[path].dtype)
    return trees.unflatten(flat)


def merged(variables: Variables, scale: float) -> Variables:
    """The model's variables out of a LoRA run's."""
    base = frozen(variables)
    return {"params": merge(base["params"], variables["params"]["lora"], scale), "stats": base["stats"]}


def frozen(variables: Variables) -> Variables:
    """The model's variables without the update: what the run began from, save for what is trained whole."""
    params, stats = variables["params"], variables["stats"]
    base = trees.flatten(stats["base"]) | trees.flatten(params.get("own", {}))
    return {"params": trees.unflatten(base), "stats": stats.get("model", {})}


class LoraTask:
    """A task of which only low-rank updates are trained; to the loop a task like any other.

    Args:
      task: what is adapted.
      spec: what of it, and how.
      precision: compute type; the merged parameters are cast to it as the step casts a plain task's.

    Raises:
      UserError: from ``init`` and ``adapt``, see ``init`` of this module; also for a parameter in both regexes.
    """

    def __init__(self, task: Task, spec: LoraSpec, precision: str = "float32") -> None:
        self.task, self.spec, self.precision = task, spec, precision
        self.unit = task.unit
        self._merge = jax.jit(lambda variables: merged(variables, spec.scale))

    def adapt(self, variables: Variables, key: jax.Array) -> Variables:
        """The run's variables around those of the base, with a fresh update."""
        spec, flat = self.spec, trees.flatten(variables["params"])
        own = _matching("train", spec.train, flat) if spec.train else []
        if both := sorted(set(own) & set(_matching("match", spec.match, flat))):
            raise UserError(f"config.lora: {both[0]} is matched by both match and train; choose one")
        params = {"lora": init(spec, variables["params"], jax.random.fold_in(key, 1))}
        stats = {"base": trees.unflatten({path: leaf for path, leaf in flat.items() if path not in own})}
        params |= {"own": trees.unflatten({path: flat[path] for path in own})} if own else {}
        stats |= {"model": variables["stats"]} if variables.get("stats") else {}
        return {"params": params, "stats": stats}

    def example(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The task's."""
        return self.task.example()

    def init(self, key: jax.Array) -> Variables:
        """A fresh update of a random base: for its shapes."""
        return self.adapt(self.task.init(key), key)

    def axes(self) -> AxisRules:
        """The task's rules for the base; the factors are split as the kernel's own two axes are."""
        rules = []
        for regex, names in self.task.axes():
            rules += [(f"(base|own)/({regex})", names)]
            if len(names) >= 2:
                rules += [
                    (f"lora/({regex})/a", (*names[:-1], None)),
                    (f"lora/({regex})/b", (*names[:-2], None, names[-1])),
                ]
        return rules

    def loss(self, variables: Variables, batch: Batch, key: jax.Array, ctx: StepContext) -> LossOutput:
        """The task's, at the sum; averages in ``ctx`` are sums too."""
        stats = variables["stats"]
        ema = {name: self._cast({"params": tree, "stats": stats})["params"] for name, tree in ctx.ema.items()}
        out = self.task.loss(self._cast(variables), batch, key, dataclasses.replace(ctx, ema=ema))
        return out._replace(stats=stats | ({"model": out.stats} if "model" in stats else {}))

    def evaluate(self, variables: Variables, batch: Batch, key: jax.Array) -> dict[str, tuple[jax.Array, jax.Array]]:
        """The task's, at the sum."""
        return self.task.evaluate(self._cast(variables), batch, key)

    def sample(self, variables: Variables, batch: Batch, key: jax.Array, folder: str) -> dict[str, float]:
        """The task's, at the sum."""
        return self.task.sample(self._merge(variables), batch, key, folder)

    def units(self, batch: Mapping[str, Any]) -> float:
        """The task's."""
        return self.task.units(batch)

    def flops(self, shapes: Mapping[str, jax.ShapeDtypeStruct]) -> float:
        """The task's: the gradient of the sum is made in full, and the factors' from it."""
        return self.task.flops(shapes)

    def _cast(self, variables: Variables) -> Variables:
        sums = merged(variables, self.spec.scale)
        return {"params": scaling.cast(sums["params"], self.precision), "stats": sums["stats"]}


def _matching(key: str, regex: str, flat: Mapping[str, Any]) -> list[str]:
    """Paths that a regex of the section matches; at least one."""
    try:
        pattern = re.compile(regex)
    except re.error as error:
        raise UserError(f"config.lora.{key}={regex!r} is not a regular expression: {error}") from None
    paths = [path for path in flat if pattern.fullmatch(path)]
    if not paths:
        some = ", ".join(path for path, leaf in flat.items() if len(leaf.shape) >= 2)
        raise UserError(
            f"config.lora.{key}={regex!r} matches no parameter; a regex must match the whole path, such as {some[:200]}"
        )
    return paths
