"""Both precisions of the sampling family's rows, with the tolerances of its README."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from launch.verify.report import Report, Row
from sampling.analytic import Mixture

TOLERANCES = {"float64": (1e-9, 1e-10), "float32": (2e-4, 2e-4)}  # relative, absolute


@contextlib.contextmanager
def precision(mode: str) -> Iterator[None]:
    """Computes in ``mode``; float64 needs x64, which is off everywhere else."""
    with jax.enable_x64(mode == "float64"):
        yield


def near(
    report: Report, name: str, mode: str, got: Any, want: Any, scale: Any = 1.0, tolerance: str | None = None
) -> None:
    """Largest error in units of absolute·scale + relative·|wanted|; 1 is the largest allowed.

    ``mode`` is what the row says, and the tolerance's precision unless ``tolerance`` names another.
    """
    relative, absolute = TOLERANCES[tolerance or mode]
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    if got.shape != want.shape:
        report.add(Row(name, mode, np.inf, 1.0, f"shape {got.shape}, expected {want.shape}"))
        return
    error = np.abs(got - want) / (absolute * scale + relative * np.abs(want))
    report.add(Row(name, mode, float(error.max(initial=0.0)), 1.0))


def mixtures(stored: Mapping[str, Any]) -> dict[str, Mixture]:
    """Every mixture in a file, by its name: ``NAME_w``, ``NAME_m``, ``NAME_C``."""
    names = [key.removesuffix("_w") for key in stored if key.endswith("_w") and f"{key[:-2]}_C" in stored]
    return {name: Mixture(*(stored[f"{name}_{part}"] for part in "wmC")) for name in names}
