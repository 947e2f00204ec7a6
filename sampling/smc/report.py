"""What went wrong in a run, in words, on the host."""

import numpy as np

from sampling.smc.protocol import Weights


def dead_swarms(weights: Weights) -> list[str]:
    """One line per swarm that died: which, and whether its weights vanished or a number was none."""
    lines = []
    for swarm in np.flatnonzero(~np.asarray(weights.alive)):
        log_z = float(weights.log_z[swarm])
        died = np.flatnonzero(np.asarray(weights.ess)[:, swarm] == 0.0)
        when = f" at step {died[0]}" if died.size else " after the last step"
        why = "all its weights vanished" if log_z == -np.inf else "a score, weight or state was not a finite number"
        lines.append(f"swarm {swarm}: {why}{when}")
    return lines


def check(weights: Weights) -> None:
    """Call it on the host before samples are used.

    Raises:
      ValueError: a swarm died, so that there is no sample of its output.
    """
    lines = dead_swarms(weights)
    if lines:
        raise ValueError(
            f"{len(lines)} of {len(np.asarray(weights.alive))} swarms died and have no samples: {'; '.join(lines)}. "
            "More particles, more steps or weaker corrections keep weights apart from zero"
        )
