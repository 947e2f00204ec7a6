"""Turns a public checkpoint into a folder that every command here takes, with all it takes to use it inside.

    python -m launch.run_convert --config=configs/f5_tts.py:v1_base --checkpoint=model_1250000.safetensors \\
        --vocab=vocab.txt --out=runs/f5_base

Nothing in a released file tells v0 from v1, or which mel it speaks: --config and --mel do.  A detector's checkpoint may
be a backbone alone, or of other classes (--classes): what it lacks starts fresh, for run_train --init_from.
"""

from absl import flags

from data.errors import UserError
from launch.flags import define_config, run

CONFIG = define_config()
CHECKPOINT = flags.DEFINE_string("checkpoint", None, "The .safetensors or .pt file.", required=True)
OUT = flags.DEFINE_string("out", None, "Folder to be made.", required=True)
VOCAB = flags.DEFINE_string("vocab", "", "Its vocab.txt; by default the one beside the checkpoint.")
MEL = flags.DEFINE_enum("mel", "", ["", "vocos", "bigvgan"], "Mel type; by default that of --config.")
PARAMS = flags.DEFINE_enum("params", "ema", ["ema", "raw"], "Which weights, where the file has both.")
CLASSES = flags.DEFINE_string("classes", "", "COCO-format json with a detector's classes; other ones start fresh.")
RESIZE_VOCAB = flags.DEFINE_string("resize_vocab", "", "vocab.txt of a new language: rows are kept by symbol.")
flags.mark_flag_as_required("config")

SPEECH = ("models.dit:DiT", "models.unett:UNetT", "models.mmdit:MMDiT")
VOCODERS = ("models.vocoders.vocos:Vocos", "models.vocoders.bigvgan:BigVGAN")
DETECTORS = ("models.detection.detector:Detector",)


def main(argv: list[str]) -> None:
    """Converts and prints what happened to every tensor."""
    del argv
    kind = CONFIG.value.model.type
    if kind in VOCODERS:
        from launch.conversion.vocoder import convert_vocoder

        return print("\n".join(convert_vocoder(CONFIG.value, CHECKPOINT.value, OUT.value)))
    if kind in DETECTORS:
        from launch.conversion.detection import convert_detector

        lines = convert_detector(CONFIG.value, CHECKPOINT.value, OUT.value, classes=CLASSES.value)
        return print("\n".join(lines))
    if kind not in SPEECH:
        known = ", ".join(SPEECH + VOCODERS + DETECTORS)
        raise UserError(f"--config: there is no converter for {kind}; expected one of {known}")
    from launch.conversion.speech import convert

    lines = convert(
        CONFIG.value,
        CHECKPOINT.value,
        OUT.value,
        vocab=VOCAB.value,
        mel=MEL.value,
        params=PARAMS.value,
        resize_vocab=RESIZE_VOCAB.value,
    )
    print("\n".join(lines))


if __name__ == "__main__":
    run(main)
