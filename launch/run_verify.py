"""Compares this code with golden numbers: one row per output, exit code 1 when a row fails.

    python -m launch.run_verify --family=f5_tts|sampling --golden=DIR [--json=FILE]

DIR is laid out like tests/golden/f5_tts (config.json, weights, stored inputs and outputs) or tests/golden/sampling
(arrays and their parameters).  What is in it and is not checked is named at the end.
"""

import importlib

from absl import flags

from data.errors import UserError
from launch.flags import run

FAMILY = flags.DEFINE_string(
    "family", None, "Family of golden numbers: f5_tts, consistency_det, sampling.", required=True
)
GOLDEN = flags.DEFINE_string("golden", None, "Folder of golden numbers.", required=True)
JSON = flags.DEFINE_string("json", None, "Write the rows to this file as well.")
QUIET = flags.DEFINE_bool("quiet", False, "Print only the rows that fail and the summary.")

FAMILIES = {
    "f5_tts": "launch.verify.f5_tts",
    "consistency_det": "launch.verify.consistency_det",
    "sampling": "launch.verify.sampling_family",
}


def main(argv: list[str]) -> int:
    """Verifies; returns 1 when a row failed."""
    del argv
    if FAMILY.value not in FAMILIES:
        raise UserError(f"--family={FAMILY.value} is not known; choose one of {', '.join(FAMILIES)}")
    from launch.verify.golden import GoldenFolder
    from launch.verify.report import Report
    from train.compile import enable_compile_cache

    folder, report = GoldenFolder(GOLDEN.value), Report(quiet=QUIET.value)
    enable_compile_cache()
    importlib.import_module(FAMILIES[FAMILY.value]).verify(folder, report)
    if QUIET.value:
        print("\n".join(map(str, report.failed)))
    print(report.summary())
    if JSON.value:
        report.write(JSON.value)
    if not report.rows:
        raise UserError(f"{folder.path} holds nothing that --family={FAMILY.value} checks")
    return 1 if report.failed else 0


if __name__ == "__main__":
    run(main)
