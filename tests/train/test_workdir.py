"""The run's folder: drift of its config, seals on its files."""

import json

import pytest

from data.errors import UserError
from tests.train.toy_config import get_config
from train import integrity, workdir
from train.assemble import plain


def test_drift_names_what_changed_and_ignores_what_may():
    old = plain(get_config())
    new = plain(get_config())
    assert workdir.drift(json.loads(json.dumps(old)), new) == [], "tuples and lists are the same"
    new["log"]["every"] = 99
    new["mesh"]["data"] = 1
    new["checkpoint"]["keep_best"] = 5
    assert workdir.drift(old, new) == []
    new["ema"]["decays"] = [0.5]
    del new["optim"]["lr"]
    assert workdir.drift(old, new) == [
        "ema.decays was [0.9, 0.99] and is [0.5]",
        "optim.lr was 0.01 and is not set",
    ]


def test_config_of_a_folder_that_has_none(tmp_path):
    with pytest.raises(UserError, match="is not a run folder"):
        workdir.read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json is not JSON"):
        workdir.read_config(tmp_path)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be made"):
        workdir.claim(tmp_path / "file" / "run")


def test_seal_finds_every_single_bit(tmp_path):
    body = bytes(range(40))
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a").write_bytes(body)
    (tmp_path / "b").write_bytes(b"")
    integrity.seal(tmp_path, {"metric": 0.5})
    assert integrity.problem(tmp_path) is None and integrity.note(tmp_path) == {"metric": 0.5}
    for bit in range(0, 8 * len(body), 7):
        wrong = bytearray(body)
        wrong[bit // 8] ^= 1 << bit % 8
        (tmp_path / "deep" / "a").write_bytes(wrong)
        assert integrity.problem(tmp_path) == "the contents of deep/a have changed (sha256 differs)"
    (tmp_path / "deep" / "a").unlink()
    assert integrity.problem(tmp_path) == "deep/a is missing"
    (tmp_path / "deep" / "a").write_bytes(body)
    integrity.annotate(tmp_path, {"metric": 0.25})
    assert integrity.problem(tmp_path) is None and integrity.note(tmp_path) == {"metric": 0.25}
    text = (tmp_path / integrity.SEAL).read_text()
    (tmp_path / integrity.SEAL).write_text(text.replace("0.25", "0.35"))
    assert integrity.problem(tmp_path) == f"{integrity.SEAL} itself has changed"
