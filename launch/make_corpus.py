"""Makes a corpus of synthetic speech to train on, such as the shipped one.

    python -m launch.make_corpus --out=DIR                                        the shipped corpus again
    python -m launch.make_corpus --out=DIR --voices=slt,rms --words=red,green,blue --count=500 --pace=0
    python -m launch.make_corpus --out=DIR --backend=espeak-ng --voices=de --words=rot,gelb,blau --pace=0

Needs flite or espeak-ng (apt-get install flite).  The folder has the LJSpeech layout with a header line; train on it
with --config.data.dir=DIR.
"""

import sys
from pathlib import Path

from absl import flags

from launch import corpus
from launch.flags import run

DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]

OUT = flags.DEFINE_string("out", None, "Folder to make.", required=True)
FORMAT = flags.DEFINE_string("format", "opus", "Of the clips: opus (small), flac or wav.")
BACKEND = flags.DEFINE_string("backend", "flite", "flite (English, easily recognised) or espeak-ng (many languages).")
VOICES = flags.DEFINE_list(
    "voices", ["slt"], "Voices of the backend, which speak in turn; flite: slt, rms, awb, kal16."
)
WORDS = flags.DEFINE_list("words", DIGITS, "What sentences are made of.")
MIN_WORDS = flags.DEFINE_integer("min_words", 3, "Fewest words in a sentence.", lower_bound=1)
MAX_WORDS = flags.DEFINE_integer("max_words", 6, "Most words in a sentence.", lower_bound=1)
COUNT = flags.DEFINE_integer("count", 1240, "Sentences, held-out ones included.", lower_bound=1)
HELD_OUT = flags.DEFINE_integer("held_out", 40, "Sentences marked as not to be trained on.", lower_bound=0)
ENDING = flags.DEFINE_string("ending", ".", "What every sentence ends with.")
PACE = flags.DEFINE_float(
    "pace", 0.0615, "Seconds per character, the same for all; 0 = each voice's own.", lower_bound=0
)
SEED = flags.DEFINE_integer("seed", 0, "Of the sentences.")


def main(argv: list[str]) -> None:
    del argv
    texts = corpus.draw_texts(WORDS.value, COUNT.value, MIN_WORDS.value, MAX_WORDS.value, SEED.value, ENDING.value)
    out = Path(OUT.value)

    def progress(done: int) -> None:
        if done % 20 == 0 or done == len(texts):
            print(f"\r{done} of {len(texts)} clips", end="", file=sys.stderr, flush=True)

    seconds = corpus.make(out, texts, HELD_OUT.value, VOICES.value, BACKEND.value, FORMAT.value, PACE.value, progress)
    size = sum(p.stat().st_size for p in (out / "wavs").iterdir())
    print(f"\n{out}: {len(texts)} clips, {seconds / 60:.1f} minutes, {size / 1e6:.2f} MB", flush=True)


if __name__ == "__main__":
    run(main)
