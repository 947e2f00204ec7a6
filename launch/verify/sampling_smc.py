"""Golden rows of sequential Monte Carlo: resampling, Feynman–Kac runs, the published heuristic, token filters, oracle.

In float64 a run is repeated whole, from its stored noise and uniform numbers.  In float32 one other index makes all
that follows another run, so stretches between stored states are repeated with the stored parents.
"""

import dataclasses
import itertools
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from launch.verify.gaussian_fkc import moments
from launch.verify.golden import GoldenFolder
from launch.verify.precision import TOLERANCES, mixtures, near, precision
from launch.verify.report import Report
from launch.verify.sampling_densities import log_constant
from sampling.guidance import Conditional, Product
from sampling.noise import Stored
from sampling.paths import VE, Path, VPLinear
from sampling.sample import Sample, sample
from sampling.smc.correctors import FeynmanKac, start_log_weights
from sampling.smc.particle_filter import Filtered, particle_filter
from sampling.smc.policies import Accumulate, Resample, Swarms
from sampling.smc.protocol import Stepped
from sampling.smc.published import CentredClipped
from sampling.smc.schemes import SCHEMES
from sampling.smc.uniforms import StoredUniforms
from sampling.smc.weights import effective, normalise
from sampling.solvers import ReverseSDE

STRETCH = 4  # steps in float32 before the stored state is taken again
TIE = 2e-6  # float32: an index may differ where its uniform number is this close to a step of the cumulative weights


def check(folder: GoldenFolder, report: Report) -> None:
    """``resampling*``, ``fkc_*``, ``particle_filter*`` and ``*fkc_oracle*``."""
    for name, match in folder.names(r"(resampling.*)\.npz"):
        stored = folder.arrays(name)
        if folder.has(f"{match[1]}.json"):
            folder.json(f"{match[1]}.json")  # words: the rule of ``sampling.smc.schemes``
        for key in sorted(key for key in stored if key.endswith("_w")):
            with report.guard(f"{name}:{key[:-2]}"):
                resampling(name, stored, key[:-2], report)
    for name, match in folder.names(r"(fkc_.+)\.npz"):
        stored, settings = folder.arrays(name), folder.json(f"{match[1]}.json")
        for mode in TOLERANCES:
            with report.guard(name, mode), precision(mode):
                if "betas" in settings:
                    Run(name, stored, settings, mode).check(report)
                else:
                    heuristic(name, stored, settings, mode, report)
    for name, match in folder.names(r"(particle_filter.*)\.npz"):
        with report.guard(name, "float64"), precision("float64"):
            token_filter(name, folder.arrays(name), folder.json(f"{match[1]}.json"), report)
    for name, _ in folder.names(r".*fkc_oracle.*\.json"):
        with report.guard(name):
            oracle(name, folder.json(name), report)


def resampling(file: str, stored: Mapping[str, Any], name: str, report: Report) -> None:
    """Arrays ``<name>_w, _u`` (one uniform number), ``_un`` (one a particle), an index array per scheme, ``_ess``."""
    rules = {scheme: rule for scheme, rule in SCHEMES.items() if f"{name}_{scheme}" in stored}
    draws = {scheme: stored[f"{name}_u" if rule.one_uniform else f"{name}_un"] for scheme, rule in rules.items()}

    @jax.jit
    def parents(weights: jax.Array, draws: dict[str, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
        shifts = jnp.array([0.0, -TIE, TIE]) * len(weights)
        found = {s: jax.vmap(lambda d, s=s: rules[s].parents(weights, draws[s] + d))(shifts) for s in rules}
        return effective(jnp.log(weights)), found

    for mode in TOLERANCES:
        with precision(mode):
            ess, found = parents(*jax.tree.map(lambda a, mode=mode: jnp.asarray(a, mode), (stored[f"{name}_w"], draws)))
        near(report, f"{file}:{name}_ess", mode, ess, stored[f"{name}_ess"])
        for scheme, (got, low, high) in jax.tree.map(np.asarray, found).items():
            want = stored[f"{name}_{scheme}"]
            tied = (mode == "float32") & (low <= want) & (want <= high)
            report.equal(f"{file}:{name}_{scheme}", list(np.where(tied, want, got)), list(want), mode)


@dataclasses.dataclass(frozen=True)
class Run:
    """One ``fkc_*`` file: mixtures ``q<i>``, exponents, a grid of descending times, everything random stored."""

    file: str
    stored: Mapping[str, Any]
    settings: Mapping[str, Any]
    mode: str

    def check(self, report: Report) -> None:
        self.start(report)
        if self.mode == "float64":
            self.whole(report)
            if self.settings.get("logZ_truth") is not None:
                truth = log_constant(self.laws, self.settings["betas"], self.path, float(self.stored["ts"][-1]))
                self.near(report, "logZ_truth", truth, self.settings["logZ_truth"])
        else:
            self.stretches(report)

    @property
    def laws(self) -> list[Any]:
        laws = mixtures(self.stored)
        return [laws[f"q{i}"] for i in range(len(self.settings["betas"]))]

    @property
    def path(self) -> Path:
        """From words like "VP bmin=.1 bmax=20"."""
        words = self.settings["process"]
        numbers = {k: float(v) for k, v in re.findall(r"(\w+) *= *([-+.\deE]+)", words)}
        if words.startswith("VP"):
            return VPLinear(numbers["bmin"], numbers["bmax"])
        if words.startswith("VE"):
            return VE(sigma_max=float(self.stored["ts"][0]))
        raise NotImplementedError(f"process {words!r}")

    def array(self, name: str) -> jax.Array:
        return jnp.asarray(self.stored[name], self.mode)

    def near(self, report: Report, name: str, got: Any, want: Any, scale: float = 1.0) -> None:
        near(report, f"{self.file}:{name}", self.mode, got, want, scale)

    def start(self, report: Report) -> None:
        """``logw0``: the start law is N(0, σ_T²/Σβ)."""
        betas, t, x = self.settings["betas"], float(self.stored["ts"][0]), self.array("x0")

        def log_weights(x: jax.Array) -> jax.Array:
            target = sum((b * q.log_density(x, t, self.path) for b, q in zip(betas, self.laws, strict=True)), 0.0)
            return start_log_weights(jnp.asarray(target), x, float(self.path.sigma(t)) ** 2 / sum(betas))

        self.near(report, "logw0", jax.jit(log_weights)(x), self.stored["logw0"])

    def sample(self, x: jax.Array, steps: slice, policy: Any, keep: Any) -> Sample:
        """Steps ``steps`` from ``x`` with the stored noise."""
        path = self.path
        guide = Product([Conditional(q.denoiser(path, "score")) for q in self.laws], self.settings["betas"])
        return sample(
            guide,
            x,
            self.stored["ts"][steps.start : steps.stop + 1],
            path=path,
            solver=ReverseSDE(self.settings["zeta"]),
            noise=Stored(self.array("noise")[steps]),
            corrector=FeynmanKac("left"),
            resampling=policy,
            particles=len(x),
            keep=keep,
        )

    def whole(self, report: Report) -> None:
        """The run of the file, indices exactly."""
        settings, stored = self.settings, self.stored
        policy = Resample(
            uniforms=StoredUniforms(self.array("u")[:, None]),
            threshold={True: None, False: settings["ess_threshold"]}[settings["always"]],
            window=tuple(settings["window"]),
            start=self.array("logw0")[None],
            record=True,
        )
        steps = slice(0, len(stored["ts"]) - 1)
        run = jax.jit(lambda x: self.sample(x, steps, policy, stored["x_steps"]))(self.array("x0"))
        weights = run.weights
        assert weights is not None and weights.history is not None
        self.near(report, "x", run.states, stored["x"])
        self.near(report, "dlogw", weights.history.increments[:, 0], stored["dlogw"])
        self.near(report, "logw", np.concatenate([stored["logw0"][None], weights.history.logw[:, 0]]), stored["logw"])
        self.near(report, "ess", weights.ess[:, 0], stored["ess"])
        for name, got in {"resampled": weights.resampled[:, 0], "idx": weights.history.parents[:, 0]}.items():
            report.equal(f"{self.file}:{name}", np.asarray(got).ravel(), stored[name].ravel(), self.mode)
        self.near(report, "logZ_estimate", weights.log_z[0], settings["logZ_estimate"])
        for name, got in {
            "N": len(stored["x0"]),
            "n_steps": steps.stop,
            "n_resample": int(weights.resampled.sum()),
        }.items():
            report.equal(f"{self.file}:{name}", [got], [settings[name]], self.mode)
        self.near(report, "min_ess", weights.ess.min(), settings["min_ess"])

    def stretches(self, report: Report) -> None:
        """From every stored state to the next with the stored parents; then each resampling from stored weights."""
        stored, ends = self.stored, self.stored["x_steps"]
        spans = list(itertools.pairwise(ends.tolist()))

        def all_spans(states: jax.Array) -> list[Sample]:
            policies = [Replay(parents=stored["idx"][a:b, None], record=True) for a, b in spans]
            return [
                self.sample(x, slice(*span), p, "final") for x, span, p in zip(states, spans, policies, strict=False)
            ]

        runs = jax.jit(all_spans)(self.array("x"))
        got_x, got_dlogw = [run.x for run in runs], [run.weights.history.increments[:, 0] for run in runs]
        scale = max(1.0, float(np.abs(stored["dlogw"]).max()))  # differences of large squares
        self.near(report, "x by stretches", np.stack(got_x), stored["x"][1:])
        self.near(report, "dlogw by stretches", np.concatenate(got_dlogw), stored["dlogw"], scale)
        rule, wrong = jax.jit(lambda w, u: SCHEMES["systematic"].parents(normalise(w), u)), 0
        for k in np.flatnonzero(stored["resampled"]):
            before = stored["logw"][k] + stored["dlogw"][k]
            w, u = jnp.asarray(before, self.mode), stored["u"][k]
            low, high = (np.asarray(rule(w, np.float32(u + s * w.size))) for s in (-TIE, TIE))
            wrong += int(((stored["idx"][k] < low) | (stored["idx"][k] > high)).sum())
        report.equal(f"{self.file}:idx from stored weights", [wrong], [0], self.mode)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Replay(Accumulate):
    """Copies from given parents [n, swarms, particles]; weights only add up."""

    parents: np.ndarray

    def step(self, state: Swarms, dlogw: jax.Array, row: dict[str, jax.Array]) -> Stepped:
        weighed = super().step(state, dlogw, row)
        parents = jnp.asarray(self.parents)[row["step"]]
        return self._stepped(weighed.state, dlogw, weighed.trace.ess, jnp.ones(len(parents), bool), parents)


def heuristic(file: str, stored: Mapping[str, Any], settings: Mapping[str, Any], mode: str, report: Report) -> None:
    """The published image sampler's loop on stored laws ``qc`` (guided) and ``qu``; σ is the time."""
    sigmas, n, w = stored["sig"], len(stored["sig"]) - 1, settings["guidance"]
    path = VE(sigma_max=float(sigmas[0]))
    laws = mixtures(stored)
    guide = Product([Conditional(laws[q].denoiser(path, "score")) for q in ("qc", "qu")], [w, 1.0 - w])
    starts, u = jnp.asarray(stored["x"], mode), jnp.asarray(stored["u"], mode)
    policy = CentredClipped(uniforms=StoredUniforms(u[:, None]), clip=settings["clip"], record=True)

    def run(x: jax.Array, steps: slice, policy: Any) -> Sample:
        noise = jnp.asarray(stored["noise"], mode)[steps]
        grid = sigmas[steps.start : steps.stop + 1]
        return sample(guide, x, grid, path=path, solver=ReverseSDE(1.0), noise=Stored(noise), keep="all",
                      corrector=FeynmanKac(), resampling=policy, particles=len(x))  # fmt: skip

    if mode == "float64":
        start = sigmas[0] * jnp.asarray(stored["x0"], mode)
        done = [jax.jit(lambda x: run(x, slice(0, n), policy))(start)]
        parents = np.asarray(done[0].weights.history.parents[:-1, 0])
        report.equal(f"{file}:idx", parents.ravel(), stored["idx"].ravel(), mode)
    else:
        parents = np.concatenate([stored["idx"], np.arange(len(stored["x0"]))[None]])[:, None]
        spans = [slice(k, min(k + STRETCH, n)) for k in range(0, n, STRETCH)]
        done = jax.jit(lambda xs: [run(xs[s.start], s, Replay(parents=parents[s], record=True)) for s in spans])(starts)
    states = np.concatenate([starts[:1], *(run.states[1:] for run in done)])
    raw = np.concatenate([run.weights.history.increments[:, 0] for run in done])[:-1]
    clipped = np.clip(raw - raw.mean(1, keepdims=True), -settings["clip"], settings["clip"])
    near(report, f"{file}:x", mode, states, stored["x"], float(sigmas[0]))
    for name, got in {"raw": raw, "clipped": clipped}.items():
        near(report, f"{file}:{name}", mode, got, stored[name])


def token_filter(file: str, stored: Mapping[str, Any], settings: Mapping[str, Any], report: Report) -> None:
    """A chain of tokens ``tr0, TR`` with rewards [step, last token, token]; the first token above u is proposed."""
    first, then, logits = (jnp.asarray(stored[k]) for k in ("tr0", "TR", "reward"))
    logits = (jnp.log(logits) - jnp.log1p(-logits)) / settings["temperature"]
    steps, n = stored["u_prop"].shape

    def propose(particles: dict[str, jax.Array], given: dict[str, jax.Array]) -> dict[str, jax.Array]:
        i, last = given["step"], particles["last"]
        chances = jnp.where(i == 0, first, then[last])
        token = jnp.argmax(jnp.cumsum(chances, axis=1) > given["u"][:, None], axis=1)
        weight = logits[i, jnp.where(i == 0, 0, last), token]
        return {"tokens": particles["tokens"].at[:, i].set(token), "last": token, "weight": weight}

    def weigh(particles: dict[str, jax.Array], given: dict[str, jax.Array]) -> jax.Array:
        return particles["weight"]

    start = {"tokens": jnp.zeros((n, steps), int), "last": jnp.zeros(n, int), "weight": jnp.zeros(n)}
    inputs = {"step": jnp.arange(steps), "u": jnp.asarray(stored["u_prop"])}

    def upto(k: int) -> Filtered:
        uniforms = StoredUniforms(jnp.asarray(stored["u_res"])[:k, None])
        policy = Resample(uniforms=uniforms, threshold=None, record=True)
        return particle_filter(propose, weigh, start, jax.tree.map(lambda a: a[:k], inputs), policy)

    done = jax.jit(lambda: [upto(k + 1) for k in range(steps)])()
    weights = done[-1].weights
    near(report, f"{file}:logw", "float64", weights.history.increments[:, 0], stored["logw"])
    report.equal(f"{file}:idx", np.asarray(weights.history.parents[:, 0]).ravel(), stored["idx"].ravel(), "float64")
    for k, filtered in enumerate(done):  # tokens after step k are not part of the stored state k
        tokens, made = np.asarray(filtered.particles["tokens"]), stored["seqs"][k]
        report.equal(f"{file}:seqs {k}", tokens[:, : k + 1].ravel(), made[:, : k + 1].ravel(), "float64")
    near(report, f"{file}:logZ_estimate", "float64", weights.log_z[0], settings["logZ_estimate"])

    everything = jnp.asarray(stored["all_seqs"], int)
    before = jnp.concatenate([jnp.zeros((len(everything), 1), int), everything[:, :-1]], axis=1)
    prior = jnp.log(first)[everything[:, 0]] + jnp.log(then)[everything[:, :-1], everything[:, 1:]].sum(1)
    posterior = prior + logits[jnp.arange(steps), before, everything].sum(1)
    near(report, f"{file}:all_logpost", "float64", posterior, stored["all_logpost"])
    truth = jax.nn.logsumexp(posterior)
    near(report, f"{file}:logZ_truth", "float64", truth, settings["logZ_truth"])


def oracle(file: str, stored: Mapping[str, Any], report: Report) -> None:
    """Cases ``s2=…,b=…,<target|tempered|deterministic>`` by the recursion of ``gaussian_fkc``, on the note's grids."""
    note = stored["_note"]
    low, high = (float(v) for v in re.search(r"bmin ([.\d]+) bmax ([.\d]+)", note).groups())  # type: ignore[union-attr]
    end = float(re.search(r"to ([-.\de]+) on the grid", note)[1])  # type: ignore[index]
    counts = [[int(n) for n in found.split(",")] for found in re.findall(r"for n=([\d,]+\d)", note)]
    path = VPLinear(low, high)
    grids = {n: end + (1.0 - end) * np.linspace(1.0, 0.0, n + 1) ** 2 for n in {*counts[0], *counts[1]}}
    for case in stored:
        if case == "_note":
            continue
        with report.guard(f"{file}:{case}"):
            words = dict(word.split("=") for word in case.split(",")[:2])
            beta = float(words["b"])
            zeta = {"target": 1.0, "tempered": beta**-0.5, "deterministic": 0.0}[case.split(",")[2]]
            found = {n: moments(float(words["s2"]), beta, zeta, path, grid) for n, grid in grids.items()}
            bias = [found[n].bias for n in counts[0]]
            second = [found[n].second for n in counts[1]]
            for name, got in {"bias": bias, "log_second_moment_ratio": second}.items():
                want = np.array([np.nan if v is None else float(v) for v in stored[case][name]])
                infinite = [str(value) for value in np.where(np.isfinite(got), 0.0, got)]
                report.equal(
                    f"{file}:{case}:{name} inf, nan", infinite, np.where(np.isfinite(want), 0.0, want).astype(str)
                )
                there = np.isfinite(want)
                near(report, f"{file}:{case}:{name}", "host", np.array(got)[there], want[there], tolerance="float64")
