"""Crops for vocoders: a function of the step, the same from any number of hosts, every utterance in its turn."""

from pathlib import Path

import numpy as np
import pytest

from data.audio import load_mel, save_wav
from data.errors import UserError
from data.vocoder import VocoderData

RATE, HOP = 8000, 64
MEL = {"kind": "vocos", "sample_rate": RATE, "n_fft": 256, "hop": HOP, "win": 256, "n_mels": 20}
LENGTHS = (4000, 2600, 9000, 700, 5000, 3100)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Six clips; sample n of clip i is recognisable: a slow ramp at its own level."""
    out, lines = tmp_path_factory.mktemp("speech"), ["id|text|split"]
    for i, n in enumerate(LENGTHS):
        save_wav(out / "wavs" / f"{i}.wav", (0.1 * (i + 1) + 1e-5 * np.arange(n)).astype(np.float32), RATE)
        lines.append(f"{i}|clip {i}|{'eval' if i == 2 else 'train'}")
    (out / "metadata.csv").write_text("\n".join(lines))
    return out


def make(folder: Path, **options) -> VocoderData:
    return VocoderData(**({"dir": str(folder), "samples": 1024, "batch": 4, "min_seconds": 0.05, "mel": MEL} | options))


def test_a_batch_is_a_function_of_its_step_and_shared_by_hosts(folder):
    data = make(folder, seed=3)
    first = data.train[17]
    assert {n: (a.shape, a.dtype) for n, a in first.items()} == data.shapes[0]
    again, other = make(folder, seed=3).train[17], make(folder, seed=4).train[17]
    np.testing.assert_array_equal(first["wave"], again["wave"])
    assert not np.array_equal(first["wave"], other["wave"])
    parts = [make(folder, seed=3, host_index=i, host_count=2).train[17] for i in range(2)]
    for name, whole in first.items():
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), whole)


def test_a_pass_takes_every_utterance_as_often_as_it_is_long(folder):
    data = make(folder)
    turns = [-(-n // 1024) for i, n in enumerate(LENGTHS) if i != 2]
    assert data.train.slots == sum(turns)
    rows = np.concatenate([data.train[step]["wave"] for step in range(data.train.slots)])  # four passes
    expected = dict(zip((1, 2, 4, 5, 6), turns, strict=True))
    counts = {clip: int((np.floor(rows[:, 0] * 10 + 1e-3) == clip).sum()) // 4 for clip in expected}
    assert counts == expected


def test_crops_are_pieces_of_the_recording_and_short_ones_repeat(folder):
    data = make(folder)
    for step in range(6):
        for row in data.train[step]["wave"]:
            jumps = np.flatnonzero(np.abs(np.diff(row)) > 1e-3)
            clip = int(row[0] * 10 + 1e-3)
            if clip == 4:  # 700 samples
                assert list(jumps) == [699]
                np.testing.assert_array_equal(row[:324], row[700:])
            else:
                assert not len(jumps), "a crop crosses from one place to another"


def test_levels(folder):
    data = make(folder, peak_db=(-6.0, -1.0))
    peaks = np.abs(np.concatenate([data.train[step]["wave"] for step in range(20)])).max(1)
    assert peaks.min() >= 10 ** (-6 / 20) - 1e-6 and peaks.max() <= 10 ** (-1 / 20) + 1e-6
    assert peaks.max() / peaks.min() > 1.5


def test_held_out_crops_come_once_and_fill_the_last_batch_with_nothing(folder, tmp_path):
    data = make(folder)
    mask = np.concatenate([batch["mask"] for batch in data.evaluation])
    waves = np.concatenate([batch["wave"] for batch in data.evaluation])[mask > 0]
    assert mask.sum() == 9000 // 1024 and len(mask) % 4 == 0
    np.testing.assert_array_equal(waves.reshape(-1), data.corpus.wave(2)[: waves.size])
    data.write_assets(str(tmp_path))
    assert load_mel(tmp_path)[0].to_dict() == MEL
    assert "5 utterances to train on" in str(data.report)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"samples": 1000}, "multiple of the hop"),
        ({"batch": 3, "row_multiple": 2}, "multiple of 2"),
        ({"peak_db": (1.0,)}, "two levels"),
    ],
)
def test_what_cannot_be_is_named(folder, options, message):
    with pytest.raises(UserError, match=message):
        make(folder, **options)
