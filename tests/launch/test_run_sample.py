"""The command `run_sample`: a wav, or one line that says why not and no file at all."""

import subprocess
import sys
from pathlib import Path

import pytest
import soundfile

from tests.launch.speech import make_clip, make_workdir
from tests.train.speech import SPEC

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return make_workdir(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return make_clip(tmp_path_factory.mktemp("audio") / "ref.wav")


def sample(*flags: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "launch.run_sample", *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_a_wav_appears(workdir, clip, tmp_path):
    out, picture = tmp_path / "new" / "out.wav", tmp_path / "out.png"
    done = sample(
        f"--workdir={workdir}", "--text=ab cd", f"--ref_audio={clip}", "--ref_text=ef", "--steps=2",
        f"--out={out}", f"--picture={picture}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    wave, rate = soundfile.read(out)
    assert rate == SPEC.sample_rate and len(wave) > 1000 and picture.stat().st_size > 1000
    assert "4 network calls" in done.stdout


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"text": "zebra"}, "no id for 'z' 'r'"),
        ({"ref_audio": "nowhere.wav"}, "no such audio file"),
        ({"workdir": "empty"}, "is not a run folder"),
    ],
)
def test_bad_input_is_one_line_and_no_file(workdir, clip, tmp_path, wrong, message):
    (tmp_path / "empty").mkdir()
    flags = {"workdir": workdir, "text": "ab", "ref_audio": clip, "ref_text": "ef", "out": tmp_path / "out.wav"}
    if wrong.get("workdir"):
        wrong = {"workdir": tmp_path / "empty"}
    done = sample(*(f"--{k}={v}" for k, v in (flags | wrong).items()))
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and message in done.stderr and done.stderr.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty"]
