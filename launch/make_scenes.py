"""Makes scenes of handwritten digits on photographs: a COCO folder that a detector can be trained and judged on.

    python -m launch.make_scenes --out=DIR                                   6000 scenes and 300 held-out ones, 64 x 64
    python -m launch.make_scenes --out=DIR --sizes=64,96,128 --max_digit=48 --max_objects=12 --overlap=0.4

Needs scikit-learn (pip install -e ".[images]"), whose digits and sample photographs they are made of.  Train on the
folder with --config.data.coco_json=DIR/train.json --config.data.eval_json=DIR/held_out.json.
"""

import sys
import time
from pathlib import Path

from absl import flags

from data.digit_scenes import SceneSpec, write_scenes
from data.errors import UserError
from launch.flags import run

OUT = flags.DEFINE_string("out", None, "Folder to make.", required=True)
TRAIN = flags.DEFINE_integer("train", 6000, "Scenes to train on.", lower_bound=1)
HELD_OUT = flags.DEFINE_integer("held_out", 300, "Scenes of held-out digits.", lower_bound=1)
SIZES = flags.DEFINE_list("sizes", ["64"], "Heights and widths of scenes, pixels.")
MIN_DIGIT = flags.DEFINE_integer("min_digit", 14, "Smallest digit, pixels.")
MAX_DIGIT = flags.DEFINE_integer("max_digit", 28, "Largest digit, pixels.")
MIN_OBJECTS = flags.DEFINE_integer("min_objects", 1, "Fewest digits in a scene; 0 = empty scenes as well.")
MAX_OBJECTS = flags.DEFINE_integer("max_objects", 5, "Most digits in a scene.")
OVERLAP = flags.DEFINE_float("overlap", 0.15, "Most that two digits' boxes overlap (intersection over union).")
SEED = flags.DEFINE_integer("seed", 0, "Of the scenes.")


def main(argv: list[str]) -> None:
    """Makes the folder and says what is in it."""
    del argv
    if not all(size.isdigit() for size in SIZES.value):
        raise UserError(f"--sizes={','.join(SIZES.value)}: expected whole numbers such as 64,96,128")
    sizes, digit = tuple(map(int, SIZES.value)), (MIN_DIGIT.value, MAX_DIGIT.value)
    spec = SceneSpec(sizes, digit, (MIN_OBJECTS.value, MAX_OBJECTS.value), OVERLAP.value, SEED.value)
    counts = {"train": TRAIN.value, "held_out": HELD_OUT.value}
    whole, start, out = sum(counts.values()), time.perf_counter(), Path(OUT.value)

    def progress(done: int) -> None:
        if done % 100 == 0 or done == whole:
            print(f"\r{done} of {whole} scenes", end="", file=sys.stderr, flush=True)

    write_scenes(out, counts, spec, progress)
    print(f"\n{out}: {TRAIN.value} scenes and {HELD_OUT.value} held out, in {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    run(main)
