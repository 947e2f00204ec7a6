"""The recipes of docs/sampling.md run as they stand there."""

import re
from pathlib import Path

import numpy as np
import pytest

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "sampling.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_there_are_three_short_ones():
    assert len(BLOCKS) == 4, "a beginning and three recipes"
    assert all(len(block.strip().splitlines()) < 15 for block in BLOCKS[1:])


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_recipe_runs(number, capsys):
    names: dict = {}
    exec(BLOCKS[0] + BLOCKS[number], names)
    assert capsys.readouterr().out, "it prints what it found"
    result = names["found"] if number == 3 else names["result"]
    assert np.isfinite(result.x).all()
    if number == 1:
        inside = sum(0.1 < 1.0 - t <= 0.9 for t in names["grid"][:-1])
        assert int(result.ledger.network_calls) == 16 + inside, "two calls inside the interval, one outside"
    if number == 2:
        assert np.asarray(result.weights.alive).all() and np.asarray(result.weights.resampled).any()
    if number == 3:
        assert 0 < int(result.ledger.network_calls) <= 200
