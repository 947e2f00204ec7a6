"""Golden rows of densities: mixtures under every path, and the constants of their powers, products and guided forms."""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from launch.verify.golden import GoldenFolder
from launch.verify.precision import TOLERANCES, mixtures, near, precision
from launch.verify.report import Report
from sampling.analytic import Mixture, geometric, log_integral
from sampling.paths import VE, FlowPath, Path, TrigFlow, VPLinear

# Name in the file -> path, and its columns: kinds of prediction, or the log-density.
PATHS: dict[str, tuple[Path, dict[str, str]]] = {
    "vp": (VPLinear(), {"logpdf": "log_density", "score": "score", "x0": "data", "eps": "noise"}),
    "ve": (VE(), {"logpdf": "log_density", "score": "score", "x0": "data", "eps": "noise"}),
    "fm": (FlowPath(), {"velocity": "velocity", "score": "score"}),
    "trig": (TrigFlow(), {"v": "velocity"}),
}


def check(folder: GoldenFolder, report: Report) -> None:
    """Every ``densities*.npz`` and the json of the same name."""
    for name, match in folder.names(r"(densities.*)\.npz"):
        stored = folder.arrays(name)
        laws = mixtures(stored)
        for mode in TOLERANCES:
            with precision(mode):
                for law in laws:
                    with report.guard(f"{name}:{law}", mode):
                        fields(name, stored, law, laws[law], mode, report)
        if folder.has(f"{match[1]}.json"):
            with precision("float64"):
                constants(f"{match[1]}.json", folder.json(f"{match[1]}.json"), laws, report)


def fields(file: str, stored: Mapping[str, Any], name: str, law: Mixture, mode: str, report: Report) -> None:
    """Arrays ``<law>_<path>_<column>`` [times, points, …], with the path's own α and σ where they are stored."""
    wanted, known = {}, {}
    for words, (path, columns) in PATHS.items():
        start = f"{name}_{words}_"
        for column in sorted(key.removeprefix(start) for key in stored if key.startswith(start)):
            if column in ("alpha", "sigma"):
                known[start + column] = getattr(path, column)(stored[f"{start}t"])
            elif column in columns:
                wanted[start + column] = (path, columns[column], jnp.asarray(stored[f"{start}t"], mode))

    def values(x: jax.Array) -> dict[str, jax.Array]:
        return {key: _over_times(law, x, times, path, kind) for key, (path, kind, times) in wanted.items()}

    for key, got in (known | jax.jit(values)(jnp.asarray(stored[f"{name}_x"], mode))).items():
        near(report, f"{file}:{key}", mode, got, stored[key])


def _over_times(law: Mixture, x: jax.Array, times: jax.Array, path: Path, kind: str) -> jax.Array:
    """[times, points, ...]."""

    def at(t: jax.Array) -> jax.Array:
        return law.log_density(x, t, path) if kind == "log_density" else law.predict(x, t, path, kind).value

    return jax.vmap(at)(times)


def constants(file: str, stored: Mapping[str, Any], laws: Mapping[str, Mixture], report: Report) -> None:
    """log ∫ of squares (``pow2``), products of a dimension's first two laws, other powers of its first, and guidance
    q_first^w q_second^(1−w)."""
    rows: list[tuple[str, float, list[Mixture], list[float]]] = []
    for key, value in stored["constants"].items():
        values = value if isinstance(value, dict) else {"": value}
        match = re.fullmatch(r"logZ_(pow2|prod|pow_beta|cfg)(?:_(\d+)d)?", key)
        if match is None:
            report.unchecked.append(f"{file}: {key}")
            continue
        pair = [law for law in laws.values() if match[2] is None or law.dimension == int(match[2])][:2]
        for what, number in values.items():
            name = f"{file}:{key} {what}".strip()
            if match[1] == "pow2":
                rows.append((name, number, [laws[what]], [2.0]))
            elif match[1] == "prod":
                rows.append((name, number, pair, [1.0, 1.0]))
            elif match[1] == "pow_beta":
                rows.append((name, number, pair[:1], [float(what)]))
            else:
                rows.append((name, number, pair, [float(what), 1.0 - float(what)]))
    for name, number, factors, exponents in rows:
        with report.guard(name, "float64"):
            got = log_constant(factors, exponents)
            near(report, name, "float64", got, number)


def log_constant(laws: list[Mixture], exponents: list[float], path: Path | None = None, t: float = 1.0) -> float:
    """log ∫∏ q_i,t^β_i, of the data without a path: closed where it is, else by quadrature in one or two dimensions."""
    path = path or FlowPath()
    alpha, sigma = float(path.alpha(t)), float(path.sigma(t))
    noise = sigma**2 * np.eye(laws[0].dimension)
    moved = [Mixture(law.weights, alpha * law.means, alpha**2 * law.covariances + noise) for law in laws]
    if all(e >= 1 and float(e).is_integer() for e in exponents):
        return geometric(moved, exponents)[1]
    if laws[0].dimension > 2:
        raise NotImplementedError(f"no constant of powers {exponents} in {laws[0].dimension} dimensions")

    def total(x: jax.Array) -> jax.Array:
        parts = [beta * law.log_density(x, 1.0, FlowPath()) for law, beta in zip(moved, exponents, strict=True)]
        return sum(parts, jnp.zeros(len(x), x.dtype))

    density = jax.jit(total)
    return log_integral(lambda points: np.asarray(density(jnp.asarray(points))), _box(moved), 801)


def _box(laws: list[Mixture]) -> list[tuple[float, float]]:
    """Thirty standard deviations around all means: guided densities are wide."""
    means = np.concatenate([law.means for law in laws])
    reach = 30.0 * np.sqrt(max(law.variances.max() for law in laws))
    return [(low - reach, high + reach) for low, high in zip(means.min(0), means.max(0), strict=True)]
