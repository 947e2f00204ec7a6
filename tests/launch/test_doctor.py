"""The doctor names causes: each check is made to fail and must say what and what to do."""

import importlib.metadata
import sys
import types
from pathlib import Path

import pytest
from absl import flags

from launch import doctor


@pytest.fixture(autouse=True)
def _parsed_flags():
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["doctor"])


def test_sound_installation_passes_every_quick_check(capsys: pytest.CaptureFixture[str]):
    checks = {name: check for name, check in doctor.CHECKS.items() if name != "training"}
    assert doctor.run(checks) == 0
    assert "everything works" in capsys.readouterr().out


@pytest.mark.slow
def test_training_check_trains():
    assert "losses" in doctor.check_train()


def test_shadowing_module_is_named(monkeypatch: pytest.MonkeyPatch):
    intruder = types.ModuleType("train")
    intruder.__file__ = "elsewhere/train.py"
    monkeypatch.setitem(sys.modules, "train", intruder)
    with pytest.raises(doctor.Problem, match=r"elsewhere/train\.py, not Murmuration's package; rename"):
        doctor.check_packages()


def test_missing_and_wrong_versions_are_named(monkeypatch: pytest.MonkeyPatch):
    real = importlib.metadata.version

    def without(name: str) -> str:
        if name == "soxr":
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", without)
    with pytest.raises(doctor.Problem, match="not installed: soxr; run"):
        doctor.check_dependencies()
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.9.1" if name == "jax" else real(name))
    with pytest.raises(doctor.Problem, match=r"jax 0\.9\.1 is outside the supported range"):
        doctor.check_dependencies()
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.10.9" if name == "jaxlib" else real(name))
    with pytest.raises(doctor.Problem, match="differ; `pip install jaxlib=="):
        doctor.check_dependencies()


def test_folder_that_takes_no_files_is_named(tmp_path: Path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(doctor.Problem, match="cannot write in"), flags_set(workdir=str(file / "run")):
        doctor.check_write()


def test_a_crash_of_a_check_is_a_finding(capsys: pytest.CaptureFixture[str]):
    def broken() -> str:
        raise RuntimeError("libsomething.so: cannot open")

    assert doctor.run({"devices": broken, "python": doctor.check_python}) == 1
    out = capsys.readouterr().out
    assert "RuntimeError: libsomething.so: cannot open" in out and "ok    python" in out


class flags_set:
    """Flags set to other values inside a ``with``."""

    def __init__(self, **values: str):
        self.values = values

    def __enter__(self) -> None:
        self.before = {name: flags.FLAGS[name].value for name in self.values}
        for name, value in self.values.items():
            flags.FLAGS[name].value = value

    def __exit__(self, *_: object) -> None:
        for name, value in self.before.items():
            flags.FLAGS[name].value = value
