"""What a run writes for programs and for people."""

import io
import json

import pytest

from data.errors import UserError
from train import writers
from train.console import Console, duration, short
from train.writers import JsonlWriter


def test_jsonl_is_cut_back_to_the_step_and_survives_a_torn_line(tmp_path):
    writer = JsonlWriter(tmp_path)
    for step in range(1, 7):
        writer.scalars(step, "train", {"loss": 1.0 / step, "bad": float("nan")})
        writer.scalars(step, "eval", {"error": 1.0})
    writer.close()
    path = tmp_path / writers.JSONL
    path.write_text(path.read_text() + '{"step": 7, "kind": "tr')
    writer = JsonlWriter(tmp_path, step=4)
    writer.scalars(4, "eval", {"error": 2.0})
    writer.close()
    assert [r["step"] for r in writers.read(tmp_path, "train")] == [1, 2, 3, 4]
    assert [r["error"] for r in writers.read(tmp_path, "eval")] == [1.0, 1.0, 1.0, 2.0]
    first = writers.read(tmp_path)[0]
    assert first["loss"] == 1.0 and first["bad"] is None
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_tensorboard_writer_says_what_to_install_or_writes(tmp_path):
    try:
        import tensorboardX  # noqa: F401
    except ModuleNotFoundError:
        with pytest.raises(UserError, match="pip install"):
            writers.TensorBoardWriter(tmp_path)
    else:
        writer = writers.TensorBoardWriter(tmp_path)
        writer.scalars(3, "train", {"loss": 1.0})
        writer.close()
        assert list((tmp_path / "tensorboard").iterdir())


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_console_rewrites_on_a_terminal_and_appends_in_a_log():
    log = io.StringIO()
    console = Console(log)
    console.line("step 1", lasting=False)
    console.line("step 2", lasting=True)
    console.note("evaluated")
    console.close()
    assert log.getvalue() == "step 2\nevaluated\n"
    terminal = Terminal()
    console = Console(terminal)
    console.line("step 10", lasting=True)
    console.line("step 9", lasting=True)
    console.note("evaluated")
    console.line("step 11", lasting=True)
    console.close()
    text = terminal.getvalue()
    assert text == "\rstep 10\rstep 9 \r" + " " * 6 + "\revaluated\n\rstep 11\n" and "\n\n" not in text
    silent = io.StringIO()
    Console(silent, enabled=False).note("from process 1")
    assert silent.getvalue() == ""


def test_numbers_for_people():
    assert [duration(s) for s in (5, 75, 3675)] == ["0:05", "1:15", "1:01:15"]
    assert [short(v) for v in (0.1234, 999.4, 1234, 5e6, 7e9)] == ["0.123", "999", "1.23k", "5M", "7G"]
