"""Digits from a config to a picture, and a teacher's run to its student's."""

import jax
import numpy as np
import pytest

from configs import digits_flow
from data.errors import UserError
from tests.launch.commands import command
from train.checkpoint import restore_variables
from train.run import train


def shortened(variant: str, **task):
    config = digits_flow.get_config(variant)
    tiny = digits_flow.get_config("tiny")
    with config.unlocked():
        for section in ("data", "log", "evaluation", "sample", "checkpoint"):
            config[section] = tiny[section]
        config.steps, config.optim.warmup_steps = tiny.steps, 1
        config.model.dim, config.model.depth, config.model.heads = 16, 1, 2
        config.task.update(task)
    return config


@pytest.mark.slow
def test_a_teacher_reaches_its_student_and_pictures_come_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    teacher, student = tmp_path / "edm", tmp_path / "cd"
    with pytest.raises(UserError, match=r"config\.task\.teacher=DIR"):
        train(shortened("cd"), student)
    train(shortened("edm"), teacher)
    config = shortened("cd", teacher=str(teacher))
    train(config, student, init_from=teacher)
    before, _ = restore_variables(teacher)
    after, _ = restore_variables(student, params="raw")
    moved = [np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (before, after)), strict=True)]
    assert 0 < max(moved) < 0.1, "it began at the teacher and learned"

    with command("run_sample", f"--workdir={student}", "--labels=7,10", "--each=3", "--out=some/digits.png") as sample:
        sample.main([])
    from matplotlib import pyplot

    assert pyplot.imread(tmp_path / "some/digits.png").shape[:2] == (4 * 27, 4 * 18)
    with (
        pytest.raises(UserError, match=r"ends in \.png"),
        command("run_sample", f"--workdir={student}", "--labels=7", "--out=digits.wav") as sample,
    ):
        sample.main([])
