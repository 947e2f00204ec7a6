"""Curves of quality against network calls, on vectors of two numbers whose exact network is known."""

import dataclasses
import json
import types

import jax.numpy as jnp
import numpy as np
import pytest

from data.errors import UserError
from launch.evaluation.curve_points import Sampler, points
from launch.evaluation.curves import FILE, Bench, measure
from launch.pipelines.images import ImagePipeline
from sampling.analytic import Mixture
from sampling.grids import uniform
from sampling.paths import FlowPath
from sampling.prediction import Prediction
from sampling.solvers import DPMpp2M

PATH = FlowPath()
LAWS = [Mixture([1.0], [[side * 0.5, 0.0]], [0.05 * np.eye(2)]) for side in (-1, 1)]
ANY = Mixture([0.5, 0.5], [[-0.5, 0.0], [0.5, 0.0]], [0.05 * np.eye(2)] * 2)
LABELS = np.arange(24) % 2


def denoiser(variables):
    def denoise(x, t, labels):
        answers = jnp.stack([law.predict(x, t, PATH, "velocity").value for law in (*LAWS, ANY)])
        return Prediction(answers[labels, jnp.arange(len(x))], "velocity")

    return denoise


def pipeline(**objective):
    own = {"spans": False, "sampler": lambda steps: (DPMpp2M(), uniform(steps))} | objective
    task = types.SimpleNamespace(
        path=PATH, shape=(2,), classes=2, objective=types.SimpleNamespace(**own),
        denoiser=denoiser, denormalise=lambda x: x,
    )  # fmt: skip
    return ImagePipeline(task, {"params": {"w": np.ones(3)}, "stats": {}})


def judge(images, labels):
    return {"accuracy": float(((images[:, 0] > 0) == labels).mean())}


def verifier(images, labels):
    """Likes a large second number, which the judge does not look at."""
    return images[:, 1]


BENCH = Bench(LABELS, judge, verifier, ("judge", "verifier"), {"accuracy": 1.0})


def test_points_are_read_from_the_command_line():
    got = points(["heun:2-4", "guided:1-1.5", "fkc:4", "random", "own"], steps=8, weight=2.0)
    assert [str(p) for p in got[:5]] == ["heun 2", "heun 4", "guided 1", "guided 1.5", "fkc 4"]
    assert got[0].options.solver == "heun" and got[0].options.steps == 2
    assert got[3].options.guidance == 1.5 and got[4].options.particles == 4 and got[4].options.guidance == 2.0
    assert [p.number for p in got if p.search] == [1, 2, 4, 8, 16]
    for bad, message in [("fast", "is not known"), ("heun:a", "expected numbers"), ("euler:0", "whole numbers"),
                         ("euler:1.5", "whole numbers"), ("paths:1", "two runs")]:  # fmt: skip
        with pytest.raises(UserError, match=message):
            points([bad], 8, 2.0)


@pytest.mark.slow
def test_every_kind_of_point_costs_what_it_says():
    expected = {"heun:4": 8, "dpmpp2m:4": 4, "guided:1.5": 16, "own:2": 2, "random:4": 32, "sde:6": 12, "fkc:2": 64}
    for curve, calls in expected.items():
        (point,) = points([curve], steps=8, weight=2.0)
        images, ledger = Sampler(pipeline(), point, LABELS, verifier)(seed=0)
        assert images.shape == (24, 2) and np.isfinite(images).all()
        assert ledger.network_calls == calls, curve
        assert ledger.verifier_calls == (4 if curve == "random:4" else 0)
    for curve in ("zero_order:5", "paths:6"):
        (point,) = points([curve], steps=8, weight=2.0)
        assert 0 < Sampler(pipeline(), point, LABELS, verifier)(seed=0)[1].network_calls <= 8 * point.number


def test_measured_drawn_and_resumed(tmp_path):
    asked = points(["random:1-8", "euler:4"], steps=4, weight=2.0)
    told = []
    first = measure({"two": pipeline()}, asked, BENCH, [0, 1, 2], tmp_path, told.append)
    assert len(told) == 3 and "accuracy" in told[0]
    one, eight = (m.figures["verifier"] for m in first[:2])
    assert eight.low > one.high, "a search raises its verifier's score"
    assert (tmp_path / "curves.png").stat().st_size > 10000
    written = json.loads((tmp_path / FILE).read_text())
    assert len(written["points"]) == 3 and len(written["cells"]) == 9
    assert written["points"][1]["network_calls"] == 32 and written["points"][1]["verifier_calls"] == 8

    def never(images, labels):
        raise AssertionError("this cell is finished")

    again = measure(
        {"two": pipeline()}, asked, dataclasses.replace(BENCH, judge=never), [0, 1, 2], tmp_path, told.append
    )
    assert [m.to_dict() for m in again] == [m.to_dict() for m in first]
    other = pipeline()
    other.variables["params"]["w"] = np.zeros(3)
    with pytest.raises(AssertionError, match="finished"):
        measure({"two": other}, asked, dataclasses.replace(BENCH, judge=never), [0], tmp_path, told.append)


def test_models_of_few_steps_take_their_own_sampler_only(tmp_path):
    few = pipeline(spans=True)
    with pytest.raises(UserError, match="only the curve `own`"):
        measure({"few": few}, points(["euler:4"], 4, 2.0), BENCH, [0], tmp_path)


def test_a_file_that_is_none_is_refused(tmp_path):
    (tmp_path / FILE).write_text("[]")
    with pytest.raises(UserError, match="holds no curves"):
        measure({"two": pipeline()}, points(["euler:4"], 4, 2.0), BENCH, [0], tmp_path)
