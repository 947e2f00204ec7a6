# pyright: reportMissingImports=false
"""The other side of tests/benchmarks/particles.py: blackjax's resampling, and correctors as a PyTorch loop."""

import argparse
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.benchmarks import particle_cases as cases
from tests.benchmarks.f5_cases import measure, say


class Loop:
    """Annealed Feynman–Kac sampling the way PyTorch users write it: tensors on a Python loop, one .item() a step."""

    def __init__(self, steps: int, threshold: float = cases.THRESHOLD):
        self.threshold = threshold
        w, means, covariances = cases.mixture()
        variances, axes = np.linalg.eigh(covariances)
        self.log_w, self.means, self.variances, self.axes = (
            torch.tensor(a, dtype=torch.float32) for a in (np.log(w), means, variances, axes)
        )
        self.times = cases.grid(steps)

    def score(self, x: torch.Tensor, alpha: float, variance: float) -> torch.Tensor:
        inside = torch.einsum("bkd,kde->bke", x[:, None] - alpha * self.means, self.axes)
        spread = alpha**2 * self.variances + variance
        scaled = inside / spread
        logs = self.log_w - 0.5 * (inside * scaled).sum(-1) - 0.5 * torch.log(spread).sum(-1)
        share = torch.softmax(logs, -1)[..., None]
        return -torch.einsum("bke,kde->bd", share * scaled, self.axes)

    @torch.inference_mode()
    def __call__(self, x: torch.Tensor, noise: torch.Tensor | None = None) -> tuple[torch.Tensor, float]:
        n, beta, logw, log_z = len(x), cases.BETA, torch.zeros(len(x)), 0.0
        for k in range(len(self.times) - 1):
            t, h = float(self.times[k]), float(self.times[k] - self.times[k + 1])
            log_alpha = -0.25 * t**2 * (cases.BETA_MAX - cases.BETA_MIN) - 0.5 * t * cases.BETA_MIN
            alpha, g2 = float(np.exp(log_alpha)), cases.BETA_MIN + t * (cases.BETA_MAX - cases.BETA_MIN)
            score = self.score(x, alpha, 1.0 - alpha**2)
            logw += h * (0.5 * g2 * beta * (beta - 1.0) * (score**2).sum(-1) - (beta - 1.0) * 0.5 * g2 * 2)
            z = torch.randn_like(x) if noise is None else noise[k]
            x = x + h * (0.5 * g2 * x + g2 * beta * score) + (g2 * h) ** 0.5 * z
            w = torch.softmax(logw, 0)
            if (1.0 / (w**2).sum()).item() < self.threshold * n:
                log_z += (torch.logsumexp(logw, 0) - np.log(n)).item()
                points = (torch.arange(n) + torch.rand(())) / n
                x = x[torch.searchsorted(torch.cumsum(w, 0), points, right=True).clamp_(max=n - 1)]
                logw = torch.zeros(n)
        return x, log_z + (torch.logsumexp(logw, 0) - np.log(n)).item()


def resamplers(args: argparse.Namespace) -> dict[str, float]:
    """Seconds of one jitted call of each of blackjax's schemes."""
    import blackjax.smc.resampling as theirs
    import jax

    walls = {}
    for n in args.sizes:
        w = jax.numpy.asarray(cases.weights(n))
        for name in cases.SCHEMES:
            say(f"blackjax: {name}, {n}")
            scheme, key = getattr(theirs, name), jax.random.key(0)
            rule = jax.jit(lambda key, w, scheme=scheme, n=n: scheme(key, w, n))
            parents = np.asarray(rule(key, w))
            assert parents.shape == (n,) and parents.max() < n
            call = lambda rule=rule, w=w, key=key: jax.block_until_ready(rule(key, w))  # noqa: E731
            walls[f"{name} {n}"] = measure(call, args.seconds)["wall"]
    return walls


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+")
    parser.add_argument("--particles", type=int, nargs="+")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    given = {k: torch.from_numpy(v) for k, v in cases.draws(**cases.COMPARED).items()}
    x, log_z = Loop(cases.COMPARED["steps"], threshold=0.0)(given["x"] / cases.BETA**0.5, given["noise"])
    np.savez(args.folder / "theirs.npz", x=x.numpy(), log_z=log_z)
    result: dict[str, Any] = {
        "name": f"torch {torch.__version__.split('+')[0]}, blackjax {version('blackjax')}",
        "resampling": resamplers(args),
        "runs": {},
    }
    for n in args.particles:
        say(f"torch: {n} particles, {args.steps} steps")
        loop, x = Loop(args.steps), torch.randn(n, 2) / cases.BETA**0.5
        Loop(5)(x)
        result["runs"][str(n)] = measure(lambda loop=loop, x=x: loop(x), args.seconds)["wall"]
    print(json.dumps(result))


if __name__ == "__main__":
    main()
