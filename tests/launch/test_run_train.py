"""The training command as a person meets it: one clear line for a mistake, exit codes that a queue can act on."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags

from data.errors import UserError
from launch import flags as launch_flags
from tests.train.test_checkpoint import arrays_of
from tests.train.toy_config import get_config
from train import checkpoint, writers
from train.run import train

ROOT = Path(__file__).resolve().parents[2]
CONFIG = "--config=tests/train/toy_config.py"


def _command(workdir, *arguments):
    return [sys.executable, "-m", "launch.run_train", CONFIG, f"--workdir={workdir}", *arguments]


def _environment(**changes):
    return os.environ | changes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([CONFIG, "--config.optim.lrr=1"], "lrr"),
        ([CONFIG, "--config.steps=many"], "many"),
        ([CONFIG, "--config.log.tensorboard=perhaps"], "perhaps"),
        (["--config=configs/nothing.py"], "configs/nothing.py"),
        (["--config=configs/f5_tts.py:huge"], "huge"),
        ([CONFIG, "--unknown=1"], "unknown"),
        ([], "config"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(arguments, message, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    known = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, lock_config=True, flag_values=known)
    flags.mark_flag_as_required("config", flag_values=known)
    monkeypatch.setattr(sys, "argv", ["run_train", *arguments])  # config_flags looks for overrides here
    with pytest.raises(SystemExit) as end:
        launch_flags.parse(sys.argv, known)
    assert end.value.code == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith("error: ") and err.count("\n") == 1 and message in err
    assert "Traceback" not in err


def test_config_is_found_from_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    known = flags.FlagValues()
    config = config_flags.DEFINE_config_file("config", None, lock_config=True, flag_values=known)
    monkeypatch.setattr(sys, "argv", ["run_train", CONFIG, "--config.optim.lr=0.5", "--config.mesh.fsdp=2"])
    assert launch_flags.parse(sys.argv, known)
    assert config.value.optim.lr == 0.5 and config.value.mesh.fsdp == 2 and config.value.steps == 20


def test_a_package_of_the_same_name_in_the_way_is_named(tmp_path, monkeypatch):
    launch_flags.check_packages()
    fake = type(sys)("data")
    fake.__path__ = [str(tmp_path)]
    monkeypatch.setitem(sys.modules, "data", fake)
    with pytest.raises(UserError, match=f"`data` is imported from {tmp_path}"):
        launch_flags.check_packages()


def test_importing_the_command_starts_no_backend():
    code = (
        "import launch.run_train, train.run, jax\n"
        "from jax._src import xla_bridge\n"
        "assert not xla_bridge._backends, 'jax.distributed.initialize would come too late'"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=120).returncode == 0


@pytest.mark.slow
def test_divergence_and_bad_input_have_their_exit_codes(tmp_path):
    bad = subprocess.run(
        _command(tmp_path, "--config.data.bad_from=7"), cwd=ROOT, env=_environment(), capture_output=True, text=True
    )
    assert bad.returncode == 86 and bad.stderr.startswith("diverged: 3 steps in a row")
    drift = subprocess.run(_command(tmp_path), cwd=ROOT, env=_environment(), capture_output=True, text=True)
    assert drift.returncode == 2 and drift.stderr.count("\n") == 1
    assert drift.stderr.startswith("error: ") and "data.bad_from was 7 and is -1" in drift.stderr


@pytest.mark.slow
def test_a_disk_that_fills_up_during_a_save(tmp_path):
    config: Any = get_config()
    config.steps, config.optim.warmup_steps = 5, 0
    before = tmp_path / "checkpoints" / "5"
    train(config, tmp_path)
    sizes = [p.stat().st_size for p in before.rglob("*") if p.is_file()]
    limit = max(sizes) // 2
    small_files = (
        f"import resource, runpy; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); "
        "runpy.run_module('launch.run_train', run_name='__main__', alter_sys=True)"
    )
    command = [sys.executable, "-c", small_files, *_command(tmp_path, "--allow_config_change")[3:]]
    warm = _environment(JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="1e9")  # must not write torn files into the cache
    full = subprocess.run(command, cwd=ROOT, env=warm, capture_output=True, text=True)
    assert full.returncode == 2, full.stderr
    assert full.stderr.startswith("error: checkpoint ") and full.stderr.count("\n") == 1
    assert "could not be written (File too large); intact checkpoints: 5;" in full.stderr
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["5"]
    assert train(get_config(), tmp_path, allow_config_change=True) is None  # type: ignore[arg-type]


def _free_port():
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def _two_processes(workdir, *arguments, environments):
    cluster = [f"--coordinator=localhost:{_free_port()}", "--num_processes=2", "--start_timeout=120"]
    one = "--xla_force_host_platform_device_count=1"
    started = [
        subprocess.Popen(
            [*_command(workdir, *arguments), *cluster, f"--process_id={i}"],
            cwd=ROOT,
            env=_environment(XLA_FLAGS=one, **environments[i]),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(2)
    ]
    texts = [process.communicate(timeout=300)[0] for process in started]
    return [process.returncode for process in started], texts


@pytest.mark.slow
def test_two_processes_equal_one_and_stop_together(tmp_path):
    struck = ({}, {"TOY_SIGNAL": "15@12"})  # one of the two is told to stop
    intervals = ["--config.checkpoint.every=3", "--config.checkpoint.keep_every=3"]
    codes, texts = _two_processes(tmp_path / "two", *intervals, environments=struck)
    assert codes == [85, 85], texts
    assert "step 3/20" in texts[0] and "step 3/20" not in texts[1], "one process speaks"
    steps = checkpoint.step_folders(tmp_path / "two" / "checkpoints")
    assert steps[0] == 3 and steps[-1] < 20
    assert checkpoint.read_meta(tmp_path / "two" / "checkpoints" / "3")["processes"] == 2

    config: Any = get_config()
    config.checkpoint.every = config.checkpoint.keep_every = 3
    assert train(config, tmp_path / "one") is None
    ours, theirs = (arrays_of(tmp_path / name, 3) for name in ("two", "one"))
    assert ours.keys() == theirs.keys()
    for path, a in theirs.items():
        scale = np.abs(a).max() + 1e-30  # of the array: Adam turns rounding of a tiny gradient into a visible digit
        assert np.abs(ours[path] - a).max() <= 1e-5 * scale, path
    a, b = (writers.read(tmp_path / name, "train")[0] for name in ("two", "one"))
    assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
    assert train(config, tmp_path / "two") is None, "one process goes on where two stopped"
