"""Writes the parameters of a run for other programs, or alone for ours.

    python -m launch.run_export --workdir=runs/mine --format=public --out=DIR

Formats: ``public``, a file that the F5-TTS reference loads, with vocab.txt; ``safetensors``, our own names; ``params``,
a folder without history and with one set of parameters that every command here takes.
"""

from pathlib import Path

from absl import flags

from data.errors import UserError
from launch.flags import run

WORKDIR = flags.DEFINE_string("workdir", None, "Run folder or converted checkpoint.", required=True)
FORMAT = flags.DEFINE_string("format", None, "public, safetensors or params.", required=True)
OUT = flags.DEFINE_string("out", None, "Folder to write into; for params a new one.", required=True)
PARAMS = flags.DEFINE_string("params", "ema", "Which parameters: ema, raw or ema/<decay>.")

FORMATS = ("public", "safetensors", "params")


def main(argv: list[str]) -> None:
    """Exports."""
    del argv
    if FORMAT.value not in FORMATS:
        later = " (stablehlo is not there yet)" if FORMAT.value == "stablehlo" else ""
        raise UserError(f"--format={FORMAT.value}: expected one of {', '.join(FORMATS)}{later}")
    from launch.conversion.folder import check_new
    from launch.conversion.speech_export import Exported, export_params, export_public, export_safetensors

    out = check_new(OUT.value) if FORMAT.value == "params" else Path(OUT.value)
    source = Exported(WORKDIR.value, PARAMS.value)
    export = {"public": export_public, "safetensors": export_safetensors, "params": export_params}[FORMAT.value]
    print("\n".join(export(source, out)))


if __name__ == "__main__":
    run(main)
