"""Metrics as sums and weights, so that means over microbatches, steps, batches and hosts are exact.

A metrics dict maps names to ``(sum, weight)`` pairs, which add up, or to scalars such as ``lr`` and ``grad_norm``, of
which the latest counts.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax

Metrics = dict[str, Any]  # name -> (sum, weight) | scalar


def merge(into: Metrics, new: Mapping[str, Any]) -> Metrics:
    """Both dicts as one: pairs are added, scalars replaced.  Works on device and host values alike."""
    out = dict(into)
    for name, value in new.items():
        if isinstance(value, tuple) and name in out:
            out[name] = (out[name][0] + value[0], out[name][1] + value[1])
        else:
            out[name] = value
    return out


def means(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Plain floats for a writer; waits for the device.  A mean of nothing is NaN."""
    out = {}
    for name, value in jax.device_get(dict(metrics)).items():
        if isinstance(value, tuple):
            total, weight = float(value[0]), float(value[1])
            out[name] = total / weight if weight else math.nan
        else:
            out[name] = float(value)
    return out
