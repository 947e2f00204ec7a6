"""The GPU command runs from end to end where there is no GPU."""

import pytest

from tests.benchmarks import gpu_speech


@pytest.mark.slow
def test_smoke(capsys):
    report = gpu_speech.main(["--smoke"])
    assert [row["batch"] for row in report["sampling"]] == [1, 2]
    assert all(
        row["rtf"] > 0 and row["tflops"] > 0 for row in report["sampling"] + [{"rtf": 1, **report["training"][0]}]
    )
    out = capsys.readouterr().out
    assert "RTF" in out and "remat attention" in out
