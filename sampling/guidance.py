"""Guides: they call the network and mix its answers, and return the mix with its components.

A denoiser is ``(x [b, ...], scalar t, condition) -> Prediction``; a condition is any pytree of arrays with leading
dimension b.  One guidance scale everywhere: û + w·(ĉ − û); w = 1 is the conditional model, w = 0 the unconditional one.

What depends on time alone is planned on the host, so that weights, intervals and switches are rows of a table: another
weight does not recompile, a network that a step does not need is not called, and the ledger is exact.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from sampling.paths import Path, expand
from sampling.prediction import Prediction, coefficients, kinds

Denoiser = Callable[[jax.Array, jax.Array, Any], Prediction]
Row = dict[str, Any]  # of a plan, at one evaluation
Schedule = Callable[[np.ndarray], ArrayLike]


class Guided(NamedTuple):
    """One evaluation: what the solver follows, and the predictions it was mixed from, which cost no further call.

    Attributes:
      mix: the guided prediction.
      components: the predictions of the densities q_i.
      exponents: β_i, scalars or [b], such that the mix is the score of ∏ q_i^β_i during the whole run; None where it is
        no such score (rescaled guidance) or another one at other times (intervals), so that no weights can correct it.
      renoise: CFG++: the prediction whose noise half a step puts back, where it is not the mix's own.
      aux: what else a corrector asks for, a reward and its gradient.
    """

    mix: Prediction
    components: tuple[Prediction, ...]
    exponents: tuple[Any, ...] | None = None
    renoise: Prediction | None = None
    aux: dict[str, Any] = {}  # noqa: RUF012, never written to

    def map(self, change: Callable[[Prediction], Prediction]) -> "Guided":
        """Every prediction changed, for example into another kind."""
        renoise = None if self.renoise is None else change(self.renoise)
        return self._replace(mix=change(self.mix), components=tuple(map(change, self.components)), renoise=renoise)


class GuidePlan(NamedTuple):
    """Host-side constants of a whole trajectory.

    Attributes:
      rows: a pytree of arrays [n, evaluations, ...], cast to the state's type unless boolean.
      calls: [n, evaluations] int, network calls that each evaluation costs an output row.
    """

    rows: Row
    calls: np.ndarray


class Guide(Protocol):
    """Everything a solver sees of the networks."""

    def plan(self, path: Path, times: np.ndarray) -> GuidePlan:
        """``times`` [n, evaluations] float64; NaN where nothing is evaluated."""
        ...

    def __call__(self, x: jax.Array, t: jax.Array, row: Row) -> Guided:
        """At one time, with its row of the plan."""
        ...


class Conditional:
    """No guidance: the denoiser under its condition."""

    def __init__(self, denoiser: Denoiser, condition: Any = None):
        self.denoiser, self.condition = denoiser, condition

    def plan(self, path: Path, times: np.ndarray) -> GuidePlan:
        return GuidePlan({}, np.ones(times.shape, int))

    def __call__(self, x: jax.Array, t: jax.Array, row: Row) -> Guided:
        prediction = self.denoiser(x, t, self.condition)
        return Guided(prediction, (prediction,), (1.0,))


class _Extrapolated:
    """û + w(ĉ − û) for a pair of answers; subclasses say where the pair comes from."""

    def __init__(
        self,
        weight: float | jax.Array,
        interval: tuple[float, float] | None,
        schedule: Schedule | None,
        rescale: float,
        plus_plus: bool,
    ):
        if interval is not None and not 0.0 <= interval[0] < interval[1]:
            raise ValueError(f"a guidance interval is (low, high] in σ with 0 ≤ low < high, got {interval}")
        if not 0.0 <= rescale <= 1.0:
            raise ValueError(f"rescale is a share in [0, 1], got {rescale}")
        self.weight = jnp.asarray(weight)
        self.interval, self.schedule, self.rescale, self.plus_plus = interval, schedule, rescale, plus_plus

    def _pair(self, x: jax.Array, t: jax.Array) -> tuple[Prediction, Prediction]:
        """(ĉ, û)."""
        raise NotImplementedError

    def _given(self, x: jax.Array, t: jax.Array) -> Prediction:
        """ĉ alone."""
        raise NotImplementedError

    def plan(self, path: Path, times: np.ndarray) -> GuidePlan:
        """One factor of w − 1 for every time; where it is 0 the second answer is not needed and not computed."""
        factor = np.ones(times.shape)
        if self.schedule is not None:
            factor *= np.broadcast_to(np.asarray(self.schedule(times), np.float64), times.shape)
        if self.interval is not None:
            sigma = path.sigma(times)
            factor *= (self.interval[0] < sigma) & (sigma <= self.interval[1])
        on = factor != 0.0
        rows = {} if (factor == 1.0).all() else {"factor": factor}
        if not on.all():
            rows["on"] = on
        return GuidePlan(rows, np.where(on, 2, 1))

    def __call__(self, x: jax.Array, t: jax.Array, row: Row) -> Guided:
        def alone(x: jax.Array) -> tuple[Prediction, Prediction]:
            given = self._given(x, t)
            return given, given

        if "on" in row:
            given, null = jax.lax.cond(row["on"], lambda x: self._pair(x, t), alone, x)
        else:
            given, null = self._pair(x, t)
        weight = self.weight.astype(given.value.dtype)
        if "factor" in row:
            weight = 1.0 + row["factor"] * (weight - 1.0)
        mix = null.value + expand(weight, x) * (given.value - null.value)
        if self.rescale:
            mix = self.rescale * mix * (_spread(given.value) / _spread(mix)) + (1.0 - self.rescale) * mix
        one_density = not (
            self.rescale or self.plus_plus or "factor" in row
        )  # a weight that changes has another each time
        density = (weight, 1.0 - weight) if one_density else None
        renoise = null if self.plus_plus else None
        return Guided(Prediction(mix, given.kind), (given, null), density, renoise)


def _spread(x: jax.Array) -> jax.Array:
    """Standard deviation of each row [b, 1, ...]."""
    return jnp.std(x, axis=tuple(range(1, x.ndim)), keepdims=True)


class ClassifierFree(_Extrapolated):
    """Classifier-free guidance (https://arxiv.org/abs/2207.12598), both halves in one batched network call.

    Args:
      denoiser: the network.
      condition, null: the condition and its dropped counterpart, same structure and shapes; stacked once, here, so a
        scan over time carries no concatenation of its constants.
      weight: w, scalar or one per row [b]; traced, so another scale does not recompile.
      interval: (low, high] in σ outside of which w = 1 and the null half is not computed
        (https://arxiv.org/abs/2404.07724).
      schedule: host times -> factors of w − 1, in [0, 1] as a rule; see ``cogvideox_schedule``.
      rescale: share of the mix that is scaled back to the spread of ĉ (https://arxiv.org/abs/2305.08891).
      plus_plus: CFG++ (https://arxiv.org/abs/2406.08070): w in [0, 1], and the noise put back is the null half's;
        needs a solver that puts noise back, ``DDIM``.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        condition: Any,
        null: Any,
        weight: float | jax.Array,
        *,
        interval: tuple[float, float] | None = None,
        schedule: Schedule | None = None,
        rescale: float = 0.0,
        plus_plus: bool = False,
    ):
        super().__init__(weight, interval, schedule, rescale, plus_plus)
        self.denoiser, self.condition = denoiser, condition
        self.both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), condition, null)

    def _pair(self, x: jax.Array, t: jax.Array) -> tuple[Prediction, Prediction]:
        both = self.denoiser(jnp.concatenate([x, x]), t, self.both)
        given, null = jnp.split(both.value, 2)
        return Prediction(given, both.kind), Prediction(null, both.kind)

    def _given(self, x: jax.Array, t: jax.Array) -> Prediction:
        return self.denoiser(x, t, self.condition)


class Autoguidance(_Extrapolated):
    """Guidance away from a weaker model of the same thing (https://arxiv.org/abs/2406.02507): û is ``weak``'s.

    The two may be different networks, each with its own condition, but must predict the same kind.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        weak: Denoiser,
        condition: Any,
        weight: float | jax.Array,
        *,
        weak_condition: Any = None,
        interval: tuple[float, float] | None = None,
        schedule: Schedule | None = None,
        rescale: float = 0.0,
    ):
        super().__init__(weight, interval, schedule, rescale, plus_plus=False)
        self.denoiser, self.weak, self.condition = denoiser, weak, condition
        self.weak_condition = condition if weak_condition is None else weak_condition

    def _pair(self, x: jax.Array, t: jax.Array) -> tuple[Prediction, Prediction]:
        given, null = self.denoiser(x, t, self.condition), self.weak(x, t, self.weak_condition)
        if given.kind != null.kind:
            raise ValueError(f"autoguidance mixes answers of one kind, got {given.kind!r} and {null.kind!r}")
        return given, null

    def _given(self, x: jax.Array, t: jax.Array) -> Prediction:
        return self.denoiser(x, t, self.condition)


class Product:
    """∏ q_i^β_i: several models of the same thing, or one of them annealed (a single member with β ≠ 1).

    The mix is Σ β_i·noise_i, since scores add up and noise is the score times −σ.  It is exact for every β only
    where the path's start is p_T^Σβ; particles (``sampling.smc``) make up for the rest of the way.

    Args:
      guides: the members; guided ones contribute all of their components.
      exponents: β_i, each a scalar or [b]; traced.
    """

    def __init__(self, guides: Sequence[Guide], exponents: Sequence[float | jax.Array]):
        if not guides or len(guides) != len(exponents):
            raise ValueError(f"a product needs one exponent per member, got {len(guides)} and {len(exponents)}")
        self.guides, self.exponents = tuple(guides), tuple(jnp.asarray(e) for e in exponents)

    def plan(self, path: Path, times: np.ndarray) -> GuidePlan:
        plans = [guide.plan(path, times) for guide in self.guides]
        table = {kind: coefficients(path, times, kind, "noise") for kind in kinds(path)}
        return GuidePlan({"members": [p.rows for p in plans], "noise": table}, np.sum([p.calls for p in plans], axis=0))

    def __call__(self, x: jax.Array, t: jax.Array, row: Row) -> Guided:
        def noise(prediction: Prediction) -> Prediction:
            if prediction.kind == "noise":
                return prediction
            cx, cp = row["noise"][prediction.kind]
            return Prediction(cx * x + cp * prediction.value, "noise")

        members = [guide(x, t, own).map(noise) for guide, own in zip(self.guides, row["members"], strict=True)]
        betas = [beta.astype(x.dtype) for beta in self.exponents]
        mix = sum(expand(beta, x) * member.mix.value for beta, member in zip(betas, members, strict=True))
        components = tuple(c for member in members for c in member.components)
        exponents = None
        if all(member.exponents is not None for member in members):
            pairs = zip(betas, members, strict=True)
            exponents = tuple(beta * e for beta, member in pairs for e in member.exponents or ())
        return Guided(Prediction(jnp.asarray(mix), "noise"), components, exponents)


class Switch:
    """``first`` for the first ``steps`` steps, ``then`` for the rest; the other one is not called.

    3DTrajMaster's annealed sampling (https://arxiv.org/abs/2412.07759) is the network with its pose adapter, then the
    one without; its ``annealed_sample_step=15`` is 16 steps.  Both guides must answer in the same form.
    """

    def __init__(self, first: Guide, then: Guide, steps: int):
        if steps < 0:
            raise ValueError(f"a switch comes after zero steps or more, got {steps}")
        self.first, self.then, self.steps = first, then, steps

    def plan(self, path: Path, times: np.ndarray) -> GuidePlan:
        first, then = self.first.plan(path, times), self.then.plan(path, times)
        early = np.broadcast_to(np.arange(len(times))[:, None] < self.steps, times.shape)
        rows = {"early": early, "first": first.rows, "then": then.rows}
        return GuidePlan(rows, np.where(early, first.calls, then.calls))

    def __call__(self, x: jax.Array, t: jax.Array, row: Row) -> Guided:
        first, then = (lambda x: self.first(x, t, row["first"])), (lambda x: self.then(x, t, row["then"]))
        forms = [jax.tree.structure(jax.eval_shape(guide, x)) for guide in (first, then)]
        if forms[0] != forms[1]:
            raise ValueError(f"a switch is between guides that answer in the same form, got {forms[0]} and {forms[1]}")
        return jax.lax.cond(row["early"], first, then, x)


def cogvideox_schedule(path: Path) -> Schedule:
    """CogVideoX's dynamic guidance, w_t = 1 + (w − 1)·(1 − cos(π·s⁵))/2 with s from 0 at the noise to 1 at the data."""

    def factor(times: np.ndarray) -> np.ndarray:
        progress = (times - path.noise_time) / (path.data_time - path.noise_time)
        return 0.5 * (1.0 - np.cos(np.pi * progress**5))

    return factor
