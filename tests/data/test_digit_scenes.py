"""Scenes of digits: boxes are tight around ink, nothing held out is shown in training, and they are ordinary COCO."""

from pathlib import Path

import numpy as np
import pytest

from data import digit_scenes
from data.boxes import pairwise_iou
from data.coco import read_coco
from data.digit_scenes import Composer, DigitScenes, SceneSpec, write_scenes
from data.errors import UserError
from tests.launch.commands import command

WIDE = SceneSpec(sizes=(64, 96), digit=(10, 40), objects=(0, 8), overlap=0.3)


def test_scenes_are_what_the_spec_says_and_always_the_same():
    compose = Composer(WIDE, "train")
    scenes = [compose(i) for i in range(60)]
    for pixels, boxes, labels in scenes:
        height, width, _ = pixels.shape
        assert {height, width} <= {64, 96} and pixels.dtype == np.uint8
        assert len(boxes) == len(labels) <= 8
        assert (boxes >= 0).all() and (boxes[:, 2:] > boxes[:, :2]).all() and (boxes[:, 2:] <= [width, height]).all()
        overlap = pairwise_iou(boxes.astype(float), boxes.astype(float)) - np.eye(len(boxes))
        assert overlap.max(initial=0) <= 0.3
    assert {p.shape[:2] for p, _, _ in scenes} == {(64, 64), (64, 96), (96, 64), (96, 96)}
    assert min(len(b) for _, b, _ in scenes) == 0 and {int(n) for _, _, ls in scenes for n in ls} == set(range(10))
    for a, b in zip(Composer(WIDE, "train")(7), scenes[7], strict=True):
        np.testing.assert_array_equal(a, b)
    other = Composer(SceneSpec(sizes=(64, 96), digit=(10, 40), objects=(0, 8), overlap=0.3, seed=1), "train")(7)
    assert other[0].shape != scenes[7][0].shape or not np.array_equal(other[0], scenes[7][0])


def test_boxes_are_tight_around_the_ink(monkeypatch):
    monkeypatch.setattr(Composer, "_background", lambda self, height, width, draw: np.zeros((height, width, 3)))
    compose = Composer(SceneSpec(objects=(1, 1)), "held_out")
    for i in range(30):
        pixels, boxes, _ = compose(i)
        ink = (pixels.max(-1) > 0).nonzero()  # nothing outside of the box
        loud = (pixels.max(-1) > 0.25 * 0.7 * 255).nonzero()  # its border rows and columns have real ink
        (x1, y1, x2, y2) = boxes[0]
        assert ink[0].min() >= y1 and ink[0].max() < y2 and ink[1].min() >= x1 and ink[1].max() < x2
        assert (loud[0].min(), loud[0].max() + 1, loud[1].min(), loud[1].max() + 1) == (y1, y2, x1, x2)


def test_what_is_held_out_is_never_shown():
    train, held_out = (Composer(SceneSpec(), split) for split in ("train", "held_out"))
    assert (len(train._glyphs), len(held_out._glyphs)) == (1200, 597)
    shown = {glyph.tobytes() for glyph in train._glyphs}
    assert sum(glyph.tobytes() in shown for glyph in held_out._glyphs) == 0
    for a, b, photo in zip(train._photos, held_out._photos, digit_scenes._photographs(), strict=True):
        np.testing.assert_array_equal(np.concatenate([a, b]), photo)


def test_the_folder_is_ordinary_coco(tmp_path: Path):
    counted: list[int] = []
    write_scenes(tmp_path, {"train": 12, "held_out": 5}, WIDE, counted.append)
    assert counted == list(range(1, 18))
    found = read_coco(tmp_path / "train.json")
    assert not found.repairs and not found.problems and len(found.images) == 12
    assert found.categories.names == tuple("0123456789") and found.categories.ids == tuple(range(1, 11))
    compose = Composer(WIDE, "held_out")
    for i, image in enumerate(read_coco(tmp_path / "held_out.json").images):
        _, boxes, labels = compose(i)
        np.testing.assert_array_equal(image.boxes, boxes)
        np.testing.assert_array_equal(image.labels, labels)
    with pytest.raises(UserError, match=r"train\.json exists"):
        write_scenes(tmp_path, {"train": 1, "held_out": 1}, WIDE)


def test_batches_come_from_scenes_that_are_made_once():
    data = DigitScenes(train_scenes=10, held_out_scenes=3, batch=2)
    assert data.shapes[0]["image"][0] == (2, 64, 64, 3) and len(data.shapes) == 1
    assert sum(batch["mask"].sum() for batch in data.evaluation) == 3
    again = DigitScenes(train_scenes=10, held_out_scenes=3, batch=2)
    np.testing.assert_array_equal(data.train[3]["image"], again.train[3]["image"])
    # Neither mirrored nor resized: the very pixels of a scene.
    compose = Composer(SceneSpec(), "train")
    scenes = {compose(i)[0].tobytes() for i in range(10)}
    assert all(row.tobytes() in scenes for step in range(5) for row in data.train[step]["image"])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"digit": (20, 10)}, "expected 8 <= low <= high"),
        ({"digit": (10, 80)}, "in scenes of"),
        ({"objects": (3, 2)}, "expected 0 <= fewest <= most"),
        ({"overlap": 1.5}, "an overlap of 0 to 1"),
    ],
)
def test_what_cannot_be_is_named(options, message):
    with pytest.raises(UserError, match=message):
        SceneSpec(**options)


def test_the_command(tmp_path: Path, capsys):
    with command("make_scenes", f"--out={tmp_path / 'a'}", "--train=4", "--held_out=2", "--sizes=64,80") as module:
        module.main([])
    assert "4 scenes and 2 held out" in capsys.readouterr().out
    assert len(read_coco(tmp_path / "a" / "train.json").images) == 4
    with (
        command("make_scenes", f"--out={tmp_path / 'b'}", "--sizes=big") as module,
        pytest.raises(UserError, match="--sizes=big"),
    ):
        module.main([])
