"""Quality against network calls: chosen samplers, correctors and searches of one model, or of several, side by side.

Every point is sampled with several seeds; beside the judge's figures stands the mean score of the verifier that
searches maximise, so that a search which only flatters its verifier shows.  A finished cell (one point, one seed) is
kept in ``curves.json`` under everything that it depends on: the same command goes on where it was stopped, and a longer
one adds to what is there.
"""

import dataclasses
import json
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from data.digits import CLASSES, SHAPE
from data.errors import UserError
from launch.evaluation import curve_points
from launch.evaluation.curve_points import Point, Sampler, points
from launch.evaluation.images import Estimate, Judge, Verifier, estimate
from launch.pipelines.images import ImagePipeline, load
from launch.plugins import plugin

FILE = "curves.json"
USUAL = ("own", "euler", "heun", "ddim", "dpmpp2m")
PER_SEED = 500  # images that a judge from the command line gets, all classes in turn
LIKED = "verifier"  # the figure that a search maximises
LABELS = {"accuracy": "accuracy by the judge", "frechet": "Fréchet distance", LIKED: "verifier's mean score"}


@dataclasses.dataclass(frozen=True)
class Bench:
    """What all points are judged by.

    Attributes:
      labels: [n], what a call makes images of.
      judge: (images [n, ...], labels [n]) -> figures; never seen by a sampler.
      verifier: what searches maximise.
      names: of judge and verifier, for the record.
      levels: figures of real images, drawn as lines.
    """

    labels: np.ndarray
    judge: Callable[[np.ndarray, np.ndarray], Mapping[str, float]]
    verifier: curve_points.Verifier
    names: tuple[str, str]
    levels: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Measured:
    """One point of one model.

    Attributes:
      model: its name.
      point: the setting.
      network_calls, verifier_calls: for one image.
      figures: over the seeds.
    """

    model: str
    point: Point
    network_calls: int
    verifier_calls: int
    figures: Mapping[str, Estimate]

    def __str__(self) -> str:
        figures = "  ".join(f"{name} {value}" for name, value in self.figures.items())
        return f"{self.model:<10} {self.point!s:<16} {self.network_calls:5d} calls  {figures}"

    def to_dict(self) -> dict[str, Any]:
        point = {"model": self.model, "curve": self.point.curve, "number": self.point.number}
        costs = {"network_calls": self.network_calls, "verifier_calls": self.verifier_calls}
        return point | costs | {name: dataclasses.asdict(value) for name, value in self.figures.items()}


class Cells:
    """Finished cells in a file, each under what it depends on.

    Raises:
      UserError: the file is no such file.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            self._cells: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["cells"]
        except FileNotFoundError:
            self._cells = {}
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} holds no curves ({error}); move it away or choose another --out") from error

    def get(self, key: Sequence[Any], compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The cell of a key, computed and saved if it is not there."""
        name = json.dumps(key, ensure_ascii=False)
        if name not in self._cells:
            self._cells[name] = compute()
            self.save([], {})
        return self._cells[name]

    def save(self, points: Sequence[Measured], levels: Mapping[str, float]) -> None:
        """Writes all cells, and the points that were asked for; a reader never sees half a file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        content = {"levels": dict(levels), "points": [p.to_dict() for p in points], "cells": self._cells}
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(part, self.path)


def measure(
    models: Mapping[str, ImagePipeline],
    points: Sequence[Point],
    bench: Bench,
    seeds: Sequence[int],
    out: Path,
    tell: Callable[[str], None] = print,
) -> list[Measured]:
    """Measures every point that a model can be sampled at, and writes ``curves.json`` and ``curves.png``.

    Models that take few large steps are sampled by their own sampler only, whatever else is asked for.

    Raises:
      UserError: there is no point that any model can be sampled at.
    """
    cells, measured = Cells(out / FILE), []
    for name, pipeline in models.items():
        mine = [p for p in points if p.curve == "own" or pipeline.follows_slopes]
        stamp = fingerprint(pipeline.variables)
        for point in mine:
            measured.append(_measure(name, pipeline, stamp, point, bench, seeds, cells))
            tell(str(measured[-1]))
    if not measured:
        raise UserError("--curves: these models take few large steps; only the curve `own` shows them")
    cells.save(measured, bench.levels)
    draw(out / "curves.png", measured, bench.levels)
    return measured


def _measure(
    model: str, pipeline: ImagePipeline, stamp: int, point: Point, bench: Bench, seeds: Sequence[int], cells: Cells
) -> Measured:
    sampler = Sampler(pipeline, point, bench.labels, bench.verifier)

    def cell(seed: int) -> dict[str, Any]:
        images, ledger = sampler(seed)
        figures = {name: float(value) for name, value in bench.judge(images, bench.labels).items()}
        liked = float(np.asarray(jax.jit(bench.verifier)(images, bench.labels)).mean())
        costs = {"network_calls": int(ledger.network_calls), "verifier_calls": int(ledger.verifier_calls)}
        return costs | {"figures": figures | {LIKED: liked}}

    stamps = [zlib.crc32(a.tobytes()) for a in (np.asarray(bench.labels, np.int64), pipeline.solver(point.options)[1])]
    key = [stamp, *bench.names, *stamps, point.curve, point.number, dataclasses.asdict(point.options)]
    found = [cells.get([*key, seed], lambda seed=seed: cell(seed)) for seed in seeds]
    figures = {name: estimate([one["figures"][name] for one in found]) for name in found[0]["figures"]}
    return Measured(model, point, found[0]["network_calls"], found[0]["verifier_calls"], figures)


def fingerprint(variables: Any) -> int:
    """A checksum of all parameters."""
    stamp = 0
    for leaf in jax.tree.leaves(variables):
        stamp = zlib.crc32(np.ascontiguousarray(leaf).tobytes(), stamp)
    return stamp


def draw(path: Path, measured: Sequence[Measured], levels: Mapping[str, float]) -> None:
    """A PNG with an axis per figure: a line for each curve of each model, 95 % intervals, real images as levels."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    several = len({m.model for m in measured}) > 1
    curves: dict[str, list[Measured]] = {}
    for m in measured:
        curves.setdefault(f"{m.model}: {m.point.curve}" if several else m.point.curve, []).append(m)
    names = list(measured[0].figures)
    figure, axes = pyplot.subplots(1, len(names), figsize=(5.0 * len(names), 4.5), layout="constrained", squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        for title, line in curves.items():
            line = sorted(line, key=lambda m: (m.network_calls, m.point.number))
            calls, values = [m.network_calls for m in line], np.array([m.figures[name].value for m in line])
            low, high = (np.array([getattr(m.figures[name], end) for m in line]) for end in ("low", "high"))
            spread = np.maximum([values - low, high - values], 0.0)
            axis.errorbar(calls, values, yerr=spread, marker="o", markersize=4, capsize=2, linewidth=1, label=title)
            if len(set(calls)) < len(calls):  # guidance costs the same at every weight
                for m, value in zip(line, values, strict=True):
                    axis.annotate(f"{m.point.number:g}", (m.network_calls, value), fontsize=7, xytext=(4, 2),
                                  textcoords="offset points")  # fmt: skip
        if name in levels:
            axis.axhline(levels[name], linestyle="--", linewidth=1, color="0.4", label="real images")
        axis.set(xlabel="network calls per image", ylabel=LABELS.get(name, name), xscale="log")
        if name == "frechet":
            axis.set_yscale("log")
            bottom, top = axis.get_ylim()
            axis.set_yticks([n for n in (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if bottom <= n <= top])
            axis.yaxis.set_major_formatter("{x:g}")
        ticks = sorted({m.network_calls for m in measured})
        axis.set_xticks([n for n in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024) if ticks[0] <= n <= ticks[-1]])
        axis.xaxis.set_major_formatter("{x:g}")
        axis.minorticks_off()
        axis.grid(alpha=0.2)
    axes[0][0].legend(fontsize=7)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def run(
    folders: Sequence[str],
    curves: Sequence[str],
    out: Path,
    *,
    steps: int,
    weight: float,
    seeds: int,
    params: str,
    judge: str | None = None,
    verifier: str | None = None,
) -> None:
    """``run_eval --curves``: measures, prints a line per point, writes ``curves.json`` and ``curves.png``.

    Args:
      folders: run folders; the curves of several stand in one picture under the folders' names.
      curves: see ``launch.evaluation.curve_points``; [] = the usual solvers, or the model's own sampler.
      judge, verifier: ``module:function`` (images, labels) -> figures, and -> scores; those of digits by default.

    Raises:
      UserError: no such runs or curves, or images that nobody here can judge.
    """
    asked = points(curves or USUAL, steps, weight)
    models = {Path(folder).absolute().name: load(folder, params=params) for folder in folders}
    if len(models) < len(folders):
        raise UserError("--beside: two of the folders have the same name, which the curves go by")
    shapes = {(p.task.shape, p.task.classes) for p in models.values()}
    if len(shapes) > 1:
        raise UserError(f"--beside: the models make different images (shape, classes): {sorted(shapes)}")
    measure(models, asked, _bench(*shapes.pop(), judge, verifier), range(seeds), out)
    print(f"means over {seeds} seeds with 95 % bootstrap intervals; {out}/{FILE} and curves.png")


def _bench(shape: tuple[int, ...], classes: int, judge: str | None, verifier: str | None) -> Bench:
    digits = (shape, classes) == (SHAPE, CLASSES)
    if not digits and (judge is None or verifier is None):
        raise UserError(f"images of shape {shape} need a judge and a verifier of yours: --judge and --verifier")
    names = (judge or "digits", verifier or "digits")
    liked = Verifier() if verifier is None else plugin(verifier, "verifier")
    if judge is not None:
        return Bench(np.arange(PER_SEED) % classes, plugin(judge, "judge"), liked, names)
    expert = Judge()

    def figures(images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        return {"accuracy": expert.accuracy(images, labels), "frechet": expert.distance(images)}

    levels = {"accuracy": expert.held_out_accuracy, "frechet": expert.floor}
    return Bench(expert.labels, figures, liked, names, levels)
