"""Golden rows of the sampling family: see the README of the folder for what each file holds.

Rows in float64 run whole trajectories from the stored start and noise; rows in float32 run every step from the stored
state before it.
"""

from launch.verify import (
    sampling_densities,
    sampling_few_step,
    sampling_grids,
    sampling_search,
    sampling_smc,
    sampling_solvers,
)
from launch.verify.golden import GoldenFolder
from launch.verify.report import Report


def verify(folder: GoldenFolder, report: Report) -> None:
    """Checks everything in ``folder`` that this code has a counterpart for, and lists the rest."""
    sampling_densities.check(folder, report)
    sampling_grids.check(folder, report)
    sampling_solvers.check(folder, report)
    sampling_few_step.check(folder, report)
    sampling_smc.check(folder, report)
    sampling_search.check(folder, report)
    report.unchecked += folder.unchecked()
