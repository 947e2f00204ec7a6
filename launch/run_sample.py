"""Says a text in the voice of a reference clip.

    python -m launch.run_sample --workdir=runs/demo --text="four one seven" \\
        --ref_audio=ref.wav --ref_text="three nine two" --out=out.wav

The folder is a run's or a converted checkpoint's.  The wav appears complete or not at all.
"""

import time
from pathlib import Path

from absl import flags

from data.errors import UserError
from launch.flags import run

WORKDIR = flags.DEFINE_string("workdir", None, "Run folder or converted checkpoint.", required=True)
TEXT = flags.DEFINE_string("text", None, "What to say.", required=True)
REF_AUDIO = flags.DEFINE_string("ref_audio", None, "Sound file with the voice: wav, flac, ogg, opus.", required=True)
REF_TEXT = flags.DEFINE_string("ref_text", None, "What is said in --ref_audio.", required=True)
OUT = flags.DEFINE_string("out", "out.wav", "The wav file to write.")
PICTURE = flags.DEFINE_string("picture", None, "Also draw the spectrogram into this PNG.")
STEPS = flags.DEFINE_integer("steps", 16, "Steps of the solver.")
CFG_STRENGTH = flags.DEFINE_float("cfg_strength", 2.0, "Guidance; 0 = none, at half the cost.")
SWAY = flags.DEFINE_float("sway", -1.0, "Sway sampling coefficient; 0 = none.")
PRUNED = flags.DEFINE_bool("pruned", True, "Use the EPSS time grids where there is one for --steps.")
METHOD = flags.DEFINE_string("method", "euler", "euler or midpoint.")
SPEED = flags.DEFINE_float("speed", 1.0, "Above 1 is faster than the reference.")
DURATION = flags.DEFINE_float("duration", None, "Seconds of the new speech, instead of the reference's pace.")
SEED = flags.DEFINE_integer("seed", 0, "Of the noise.")
PARAMS = flags.DEFINE_string("params", "ema", "Which parameters: ema, raw or ema/<decay>.")


def main(argv: list[str]) -> None:
    """Speaks."""
    del argv
    from data.audio import save_wav
    from launch.pipelines.speech import Request, load
    from train.compile import enable_compile_cache

    out = Path(OUT.value)
    if out.suffix.lower() != ".wav":
        raise UserError(f"--out={out}: expected a name that ends in .wav")
    if not -(2**31) <= SEED.value < 2**32:
        raise UserError(f"--seed={SEED.value}: expected a 32-bit number")
    enable_compile_cache()
    voice = load(WORKDIR.value, params=PARAMS.value)
    request = Request(TEXT.value, REF_AUDIO.value, REF_TEXT.value, DURATION.value, SPEED.value, SEED.value % 2**32)
    start = time.perf_counter()
    spoken = voice.batch(
        [request],
        steps=STEPS.value,
        cfg_strength=CFG_STRENGTH.value,
        sway=SWAY.value,
        pruned=PRUNED.value,
        method=METHOD.value,
    )[0]
    taken = time.perf_counter() - start
    try:
        save_wav(out, spoken.wave, spoken.sample_rate)
        if PICTURE.value:
            from train.pictures import spectrograms

            spectrograms(PICTURE.value, {TEXT.value: spoken.mel}, voice.task.spec)
    except OSError as error:
        raise UserError(f"{error.filename or out} cannot be written: {error.strerror or error}") from error
    seconds = len(spoken.wave) / spoken.sample_rate
    print(f"{out}: {seconds:.2f} s of speech in {taken:.1f} s, {spoken.network_calls} network calls")


if __name__ == "__main__":
    run(main)
