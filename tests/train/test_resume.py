"""The promise of the house: a run that was stopped, killed or damaged ends like one that was not, bit for bit."""

import io
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from configs import f5_tts
from data.audio import save_wav
from data.errors import UserError
from tests.train.test_checkpoint import arrays_of, damage
from tests.train.toy_config import get_config
from train import checkpoint, integrity, writers
from train.console import Console
from train.preempt import STOPS, Diverged, Preemption
from train.run import train

ROOT = Path(__file__).resolve().parents[2]


def _config(**changes) -> Any:
    config: Any = get_config()
    config.update_from_flattened_dict(changes)
    return config


def _records(workdir):
    return [
        {name: value for name, value in record.items() if name != "time" and not name.startswith("perf/")}
        for record in writers.read(workdir)
    ]


def _assert_same(workdir, reference, step=20):
    ours, theirs = arrays_of(workdir, step), arrays_of(reference, step)
    assert ours.keys() == theirs.keys() and len(ours) > 25  # parameters, moments, two averages, counters
    for path, a in ours.items():
        assert a.tobytes() == theirs[path].tobytes(), path
    assert _records(workdir) == _records(reference)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    workdir, text = tmp_path_factory.mktemp("reference"), io.StringIO()
    assert train(_config(), workdir, console=Console(text)) is None
    assert "2 executable(s) compiled for 2 batch shape(s)" in text.getvalue()
    return workdir


def _speech(folder):
    """A folder of chirps with names, and the config of a tiny run on them."""
    (folder / "wavs").mkdir(parents=True)
    words, lines = ("one", "two", "three", "four"), []
    for i in range(12):
        t = np.arange(8000 + 400 * (i % 3)) / 8000
        save_wav(folder / "wavs" / f"c{i}.wav", 0.3 * np.sin(2 * np.pi * (300 + 40 * i) * t * (1 + 0.2 * t)), 8000)
        lines.append(f"c{i}|{words[i % 4]} {words[i // 4]}")
    (folder / "metadata.csv").write_text("\n".join(lines))
    config: Any = f5_tts.get_config("tiny")
    config.update_from_flattened_dict(
        {"steps": 6, "data.dir": str(folder), "data.eval_fraction": 0.2, "evaluation.every": 2, "checkpoint.every": 2,
         "data.max_batch": 8, "data.mel.sample_rate": 8000, "data.mel.n_fft": 256, "data.mel.hop": 64,
         "data.mel.win": 256, "data.mel.n_mels": 16, "data.frames_per_batch": 8192, "compile_cache": False}
    )  # fmt: skip
    return config


def _run_struck(workdir, signal_at):
    """A process of its own that is struck while it trains; same devices as this one."""
    command = [sys.executable, "-m", "launch.run_train", "--config=tests/train/toy_config.py", f"--workdir={workdir}"]
    awaited = Path(workdir) / "checkpoints" / "5" / integrity.SEAL
    environment = os.environ | {"TOY_SIGNAL": signal_at, "TOY_AWAIT": str(awaited)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


def test_reference_run_writes_what_a_run_folder_holds(reference):
    records = _records(reference)
    assert [r["step"] for r in records if r["kind"] == "train"] == [3, 6, 9, 12, 15, 18, 20]
    assert [r["step"] for r in records if r["kind"] == "eval"] == [4, 8, 12, 16, 20]
    assert [r["step"] for r in records if r["kind"] == "sample"] == [8, 16, 20]
    assert records[-2]["error"] < 0.2 * next(r for r in records if r["kind"] == "eval")["error"]
    perf = writers.read(reference, "train")[-1]
    assert {"perf/step_seconds", "perf/frames_per_second", "perf/data_wait", "perf/mfu"} <= perf.keys()
    assert sorted(p.name for p in (reference / "checkpoints").iterdir()) == ["15", "20"]
    assert (reference / "samples" / "16" / "row0.txt").exists() and (reference / "assets" / "toy.json").exists()
    meta = checkpoint.read_meta(reference / "checkpoints" / "20")
    assert meta["evaluate_with"] == "ema/0.9" and meta["mesh"]["data"] == 8 and len(meta["config_sha256"]) == 64


def test_killed_at_an_arbitrary_step(tmp_path, reference):
    struck = _run_struck(tmp_path, "9@14")
    assert struck.returncode == -signal.SIGKILL, struck.stderr
    assert not (tmp_path / "checkpoints" / "20").exists() and checkpoint.step_folders(tmp_path / "checkpoints")
    assert train(_config(), tmp_path) is None
    _assert_same(tmp_path, reference)


@pytest.mark.slow
def test_sigterm_saves_and_says_requeue(tmp_path, reference):
    struck = _run_struck(tmp_path, "15@12")
    assert struck.returncode == 85, struck.stderr
    assert "stopped by SIGTERM, saved" in struck.stdout
    saved = checkpoint.step_folders(tmp_path / "checkpoints")[-1]
    assert 5 < saved < 20
    assert train(_config(), tmp_path) is None
    _assert_same(tmp_path, reference)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 85), (signal.SIGINT, 130)])
def test_signals_save_where_the_run_is(tmp_path, reference, monkeypatch, number, code):
    monkeypatch.setenv("TOY_SIGNAL", f"{int(number)}@8")
    before = signal.getsignal(number)
    stop = train(_config(), tmp_path)
    assert stop is not None and stop.code == code and checkpoint.step_folders(tmp_path / "checkpoints")[-1] < 20
    assert signal.getsignal(number) is before
    monkeypatch.delenv("TOY_SIGNAL")
    assert train(_config(), tmp_path) is None
    _assert_same(tmp_path, reference)


@pytest.mark.parametrize("how", ["flipped byte", "truncated file", "empty folder"])
def test_damaged_newest_checkpoint(tmp_path, reference, how, caplog):
    workdir = tmp_path / "run"
    shutil.copytree(reference, workdir)
    damage(workdir / "checkpoints" / "20", how)
    with caplog.at_level(logging.WARNING):
        assert train(_config(), workdir) is None
    assert "checkpoints/20 cannot be used" in caplog.text and "going back to checkpoint" in caplog.text
    _assert_same(workdir, reference)


@pytest.mark.slow
def test_on_another_mesh_the_run_goes_on_with_nearly_the_same_numbers(tmp_path, reference):
    workdir = tmp_path / "run"
    shutil.copytree(reference, workdir)
    shutil.rmtree(workdir / "checkpoints" / "20")
    assert train(_config(**{"mesh.data": 2, "mesh.fsdp": 4}), workdir) is None
    ours, theirs = arrays_of(workdir), arrays_of(reference)
    for path, a in theirs.items():
        np.testing.assert_allclose(ours[path], a, rtol=1e-4, atol=1e-6, err_msg=path)


@pytest.mark.slow
def test_speech_too_goes_on_bit_for_bit(tmp_path, monkeypatch):
    monkeypatch.setenv("MURMURATION_CACHE", str(tmp_path / "cache"))
    config = _speech(tmp_path / "clips")
    assert train(config, tmp_path / "whole") is None
    stop_at_3 = lambda self, step: STOPS[signal.SIGTERM] if step == 3 else None  # noqa: E731
    with monkeypatch.context() as patch:
        patch.setattr(Preemption, "check", stop_at_3)
        assert train(config, tmp_path / "cut") == STOPS[signal.SIGTERM]
    assert checkpoint.step_folders(tmp_path / "cut" / "checkpoints") == [2, 3]
    assert train(config, tmp_path / "cut") is None
    _assert_same(tmp_path / "cut", tmp_path / "whole", step=6)


def test_config_drift_is_refused_and_named_unless_allowed(tmp_path, reference):
    workdir = tmp_path / "run"
    shutil.copytree(reference, workdir)
    before = (workdir / "config.json").read_bytes()
    with pytest.raises(UserError, match=r"optim\.lr was 0\.01 and is 0\.02.*--allow_config_change"):
        train(_config(**{"optim.lr": 0.02}), workdir)
    assert (workdir / "config.json").read_bytes() == before
    (workdir / "assets" / "toy.json").write_text("{}")
    with pytest.raises(UserError, match=r"the data is not what .* was started with \(toy\.json would change\)"):
        train(_config(), workdir)
    changed = _config(**{"optim.lr": 0.02, "log.every": 2, "steps": 22})
    assert train(changed, workdir, allow_config_change=True) is None
    assert json.loads((workdir / "config.json").read_text())["optim"]["lr"] == 0.02
    assert checkpoint.step_folders(workdir / "checkpoints")[-1] == 22
    with pytest.raises(UserError, match=r"of another configuration: .*kernel is float32\[2,32,16\] there"):
        train(_config(**{"model.hidden": 32}), workdir, allow_config_change=True)


def test_init_from_takes_the_average_and_starts_afresh(tmp_path, reference, capsys):
    config = _config(steps=1, **{"optim.lr": 0.0, "optim.warmup_steps": 0})
    assert train(config, tmp_path, init_from=reference) is None
    ours, theirs = arrays_of(tmp_path, 1), arrays_of(reference)
    for path in (p for p in ours if p.startswith("params/")):
        source = path.replace("params/", "ema/0.9/")
        assert ours[path].tobytes() == theirs[source].tobytes()
        assert ours[source].tobytes() == theirs[source].tobytes()
    assert ours["step"] == 1 and f"parameters from {reference}, step 20, ema/0.9" in capsys.readouterr().out
    with pytest.raises(UserError, match="of another configuration"):
        train(_config(**{"model.hidden": 32}), tmp_path / "other", init_from=reference)
    with pytest.raises(UserError, match="has no checkpoint"):
        train(_config(), tmp_path / "third", init_from=tmp_path / "nothing")
    assert not (tmp_path / "other" / "config.json").exists()


def test_steps_without_finite_gradients_end_the_run(tmp_path):
    with pytest.raises(Diverged, match="3 steps in a row, up to step 10"):
        train(_config(**{"data.bad_from": 7}), tmp_path)
    assert checkpoint.step_folders(tmp_path / "checkpoints") == [5]


def test_best_checkpoint_is_kept_and_impossible_wishes_are_refused(tmp_path):
    wishes = {"checkpoint.keep_latest": 1, "checkpoint.keep_best": 1, "checkpoint.best_metric": "-error"}
    train(_config(**wishes, **{"checkpoint.every": 4, "steps": 12}), tmp_path)  # "-": the largest error, the first
    assert checkpoint.step_folders(tmp_path / "checkpoints") == [4, 12]
    with pytest.raises(UserError, match="multiple of evaluation"):
        train(_config(**wishes), tmp_path / "b")
    with pytest.raises(UserError, match="best_metric is 'accuracy'; evaluation gives error"):
        train(_config(**{**wishes, "checkpoint.best_metric": "accuracy", "checkpoint.every": 4}), tmp_path / "c")


def test_keys_nobody_reads_are_refused(tmp_path):
    for section in ("", "optim", "ema", "model", "task", "data", "log", "checkpoint", "evaluation", "profile", "mesh"):
        config = get_config().to_dict()
        (config[section] if section else config)["colour"] = "red"
        with pytest.raises(UserError, match=r"colour"):
            train(config, tmp_path)
    assert not (tmp_path / "config.json").exists()
