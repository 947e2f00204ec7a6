"""The command `run_sample`: a wav, or one line that says why not and no file at all."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data.errors import UserError
from tests.launch.commands import command
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


@pytest.mark.slow
def test_many_requests_come_out_as_files(workdir, clip, tmp_path):
    lines = [
        {"text": "ab cd", "ref_audio": str(clip), "ref_text": "ef"},
        {"text": "ef gh", "ref_audio": str(clip), "ref_text": "ef", "out": "second.wav", "seed": 3, "speed": 1.5},
        {"text": "gh"},
    ]
    requests = tmp_path / "requests.jsonl"
    requests.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    done = sample(f"--workdir={workdir}", f"--batch={requests}", "--steps=2", f"--out={tmp_path / 'wavs'}")
    assert done.returncode == 0, done.stderr
    assert {p.name for p in (tmp_path / "wavs").iterdir()} == {"0000.wav", "second.wav", "0002.wav"}
    assert "3 wavs" in done.stdout and "programs compiled" in done.stdout


@pytest.mark.slow
def test_a_stream_is_raw_samples_or_a_file(workdir, clip, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("ab cd ef gh " * 60)
    flags = (f"--workdir={workdir}", f"--text_file={text}", f"--ref_audio={clip}", "--ref_text=ef gh ab", "--steps=2",
             "--stream", "--first_seconds=0.5")  # fmt: skip
    command = [sys.executable, "-m", "launch.run_sample", *flags, "--out=-"]
    raw = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=300)
    assert raw.returncode == 0 and raw.stderr.count(b"after ") >= 2, raw.stderr
    done = sample(*flags, f"--out={tmp_path / 'out.wav'}")
    wave, _ = soundfile.read(tmp_path / "out.wav", dtype="int16")
    np.testing.assert_allclose(np.frombuffer(raw.stdout, "<i2"), wave, atol=8)
    assert done.stdout.count("after ") >= 2 and "programs compiled" in done.stdout


@pytest.mark.slow
def test_an_edited_recording(workdir, clip, tmp_path):
    flags = (f"--workdir={workdir}", "--text=ab cd", f"--ref_audio={clip}", "--edit=0.2:0.3:0.2", "--steps=2")
    done = sample(*flags, f"--out={tmp_path / 'out.wav'}")
    assert done.returncode == 0, done.stderr
    wave, _ = soundfile.read(tmp_path / "out.wav", dtype="int16")
    recording, _ = soundfile.read(clip, dtype="int16")
    np.testing.assert_array_equal(wave[:1400], recording[:1400])
    np.testing.assert_array_equal(wave[-2000:], recording[-2000:])


@pytest.mark.parametrize(
    "flags, message",
    [
        (("--text=ab", "--text_file=x"), "by --text or by --text_file"),
        (("--text=ab",), "by --ref_audio, or say --no_reference"),
        (("--text=ab", "--ref_audio=x.wav"), "needs its words"),
        (("--text=ab", "--stream", "--edit=0:1"), "do not go together"),
        (("--text=ab", "--no_reference", "--out=x.mp3"), "ends in .wav"),
        (("--batch=nowhere.jsonl",), "no such file"),
    ],
)
def test_flags_that_do_not_go_together(workdir, flags, message):
    with command("run_sample", f"--workdir={workdir}", *flags) as run_sample, pytest.raises(UserError, match=message):
        run_sample._mode()(None, None)


@pytest.mark.parametrize(
    "line, message",
    [
        ("{", "line 1: not JSON"),
        ("[1]", "expected an object with a text"),
        ('{"text": "a", "voice": 1}', "'voice' is not known"),
        ('{"text": "a", "out": "../x.wav"}', "expected a file name"),
        ('{"text": "a", "out": "x.wav"}\n{"text": "b", "out": "x.wav"}', "line 2: out is 'x.wav', like that"),
        ("", "holds no requests"),
    ],
)
def test_a_bad_line_of_a_batch_is_named(tmp_path, line, message):
    (tmp_path / "x.jsonl").write_text(line)
    with command("run_sample", "--workdir=x") as run_sample, pytest.raises(UserError, match=message):
        run_sample.read_batch(tmp_path / "x.jsonl")
