"""The detection pipeline, run_sample --image and run_eval, with a detector that finds colours."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.boxes import whole
from data.coco import read_coco
from data.detection import DetectionData
from data.errors import UserError
from launch.pipelines.detect import DetectionPipeline, Found, Options, load, original, picture
from tests.data.coco_folder import IDS, content, paint, write
from tests.launch.commands import command
from tests.launch.detector import ColourTask, make_workdir

SIZES = [(60, 96), (96, 60), (64, 64), (48, 72), (60, 96)]
BOXES = [
    [(0, [8, 8, 40, 30]), (1, [50, 10, 90, 50])],
    [(2, [8, 40, 40, 90])],
    [(1, [4, 4, 60, 60])],
    [],
    [(0, [48, 20, 96, 60]), (2, [0, 0, 30, 30]), (1, [34, 4, 44, 14])],
]
SMALL = {"short": (64,), "longest": 96, "crop": 0.0, "flip": 0.0, "batch": 2, "workers": 0, "shapes": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("coco")
    write(out, content(SIZES, BOXES))
    return out


@pytest.fixture(scope="module")
def workdir(folder, tmp_path_factory) -> Path:
    data = {"coco_json": str(folder / "boxes.json"), "eval_json": str(folder / "boxes.json")} | SMALL
    spec = DetectionData(**data).spec
    data = {"type": "data.detection:DetectionData"} | data
    return make_workdir(tmp_path_factory.mktemp("run") / "run", spec, shift=6.0, data=data)


@pytest.fixture(scope="module")
def detector(workdir) -> DetectionPipeline:
    return load(workdir, rows=2)


EXACT = Options(steps=1000, proposals=8)  # the stand-in is as good as exact then


def test_boxes_come_back_in_the_images_own_pixels(folder, detector):
    found = detector([folder / f"{i}.png" for i in range(5)], EXACT)
    for (height, width), truth, one in zip(SIZES, BOXES, found, strict=True):
        assert [detector.spec.categories.ids[k] for k in one.labels] == [IDS[k] for k, _ in sorted(truth)]
        for (_, box), got in zip(sorted(truth), one.boxes, strict=True):
            np.testing.assert_allclose(got, box, atol=1.6)  # the threshold on a blurred edge
        assert (one.boxes >= 0).all() and (one.boxes <= [width, height] * 2).all()
        assert (np.diff(one.scores) <= 0).all() and one.scores.dtype == np.float32
    assert found[0].names == ("red", "green") and len(found[3].names) == 0


def test_an_image_does_not_depend_on_the_others(folder, detector, workdir):
    """Same boxes from batches of any size; the noise of an image follows from its place and the seed."""
    files = [folder / f"{i}.png" for i in range(5)]
    options = Options(proposals=8, seed=3)
    together = detector(files, options)
    single = dict(load(workdir, rows=1).stream(SIZES, lambda i: np.asarray(Image.open(files[i])), options))
    for i, one in enumerate(together):
        np.testing.assert_array_equal(one.boxes, single[i].boxes)
    other = detector(files, dataclasses.replace(options, seed=4))
    assert not np.array_equal(together[0].boxes, other[0].boxes)
    alone = detector([files[0]], options)[0]
    np.testing.assert_array_equal(alone.boxes, together[0].boxes)


def test_few_programs_are_compiled(folder, workdir):
    detector = load(workdir, rows=2)
    for _ in range(2):
        detector([folder / f"{i}.png" for i in (0, 4, 3, 0)], EXACT)
    assert len(detector.programs) == 1 and detector.compile_seconds > 0
    detector([np.zeros((300, 70, 3), np.uint8)], EXACT)  # no canvas of the training holds it
    assert len(detector.programs) == 2


def test_scores_below_the_least_and_the_last_step(folder, detector):
    file = folder / "0.png"
    assert detector([file], dataclasses.replace(EXACT, min_score=0.85))[0].names == ("red",)
    last = detector([folder / "3.png"], dataclasses.replace(EXACT, merge=False))[0]
    # Cut at the border; the image of 48 x 72 was seen at 64 x 96.
    np.testing.assert_allclose(last.boxes, [[0, 0, 6.75, 6.75]], atol=0.2)


def test_original_undoes_the_view_and_drops_what_is_empty():
    boxes = np.array([[0, 0, 20, 10], [-9, -9, -1, -1], [10, 5, 900, 900], [3, 3, 3, 8]], np.float32)
    moved, kept = original(boxes, np.array([True, True, True, True]), whole(100, 200, 10, 20), (100, 200))
    assert kept.tolist() == [0, 2]
    np.testing.assert_allclose(moved[kept], [[0, 0, 200, 100], [100, 50, 200, 100]])


def test_a_picture_shows_boxes(folder):
    image = paint(64, 64, [], [])
    found = Found(np.array([[10, 12, 50, 40]], np.float32), np.array([0.75], np.float32), np.array([1]), ("seven",))
    drawn = picture(image, found, at_least=128)
    assert drawn.shape == (128, 128, 3)
    line = drawn[30:78, 20]  # the left edge
    assert (line == line[0]).all() and (line[0] != 90).any()
    np.testing.assert_array_equal(drawn[40:70, 40:90], np.full((30, 50, 3), 90))
    assert picture(image, Found(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int), ())).shape == (512, 512, 3)


def test_run_sample_writes_boxes_and_pictures(folder, workdir, tmp_path, capsys):
    out = tmp_path / "new" / "found.json"
    files = f"{folder / '0.png'},{folder / '4.png'}"
    flags = (f"--workdir={workdir}", f"--image={files}", "--steps=1000", "--proposals=8", f"--out={out}")
    with command("run_sample", *flags) as module:
        module.main([])
    rows = json.loads(out.read_text())
    assert [row["image"] for row in rows] == files.split(",") and rows[0]["width"] == 96
    best = rows[0]["detections"][0]
    assert best["name"] == "red" and best["category_id"] == 3 and best["score"] == pytest.approx(0.9)
    np.testing.assert_allclose(best["bbox"], [8, 8, 32, 22], atol=2.0)
    assert Image.open(tmp_path / "new" / "found.0.png").size == (96 * 8, 60 * 8)
    assert "2 found: red 0.90, green 0.80" in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--image=none.png"], "none.png: no such file"),
        (["--image={0}", "--out=a.wav"], "ends in .json"),
        (["--image={0}", "--steps=0"], "steps=0"),
        (["--image={0},{0}", "--picture=a.png"], "for one --image"),
    ],
)
def test_run_sample_says_what_is_wrong(folder, workdir, flags, message):
    flags = [flag.format(folder / "0.png") for flag in flags]
    with command("run_sample", f"--workdir={workdir}", *flags) as module, pytest.raises(UserError, match=message):
        module.main([])


def test_run_eval_prints_the_table(workdir, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("launch.evaluation.detection.TABLE", (1, 8))
    flags = ("--table=steps", "--proposals=8", "--noise_seeds=2", f"--out={tmp_path}", "--pictures=2")
    with command("run_eval", f"--workdir={workdir}", *flags) as module:
        module.main([])
    printed = capsys.readouterr().out
    assert "1 step " in printed and "8 steps, merged" in printed and "8 steps, last only" in printed
    assert "over 2 seeds" in printed and "latency: median of 15 calls with one image of 60 x 96" in printed
    report = json.loads((tmp_path / "eval.json").read_text())
    by = {(r["steps"], r["merge"]): r for r in report["results"]}
    assert len(by) == 3 and len(by[8, True]["seeds"]) == 2
    assert by[1, True]["AP"] < by[8, True]["AP"] and by[8, True]["AP"] > by[8, False]["AP"] > 0
    assert by[8, True]["milliseconds"] > 0 and report["categories"] == {"3": "red", "7": "green", "90": "blue"}
    assert {p.name for p in tmp_path.glob("*.png")} == {"0.png", "1.png"}
    assert {d["image_id"] for d in json.loads((tmp_path / "detections.json").read_text())} <= {10, 13, 16, 19, 22}


def test_run_eval_on_another_set(folder, workdir, tmp_path, capsys):
    other = content(SIZES[:2], BOXES[:2])
    other["annotations"][0]["iscrowd"] = 1  # what is found in a crowd counts neither way
    path = write(tmp_path / "other", other)
    flags = (f"--coco_json={path}", "--steps=1000", "--proposals=8", f"--out={tmp_path / 'eval'}")
    with command("run_eval", f"--workdir={workdir}", *flags) as module:
        module.main([])
    report = json.loads((tmp_path / "eval" / "eval.json").read_text())
    assert report["images"] == 2 and report["results"][0]["AP50"] == pytest.approx(1.0)
    assert "crowds left out" in capsys.readouterr().out
    other["categories"] = [c | {"id": c["id"] + 1} for c in other["categories"]]
    for annotation in other["annotations"]:
        annotation["category_id"] += 1
    write(tmp_path / "other", other, pictures=False)
    with (
        command("run_eval", f"--workdir={workdir}", *flags) as module,
        pytest.raises(UserError, match="was trained on"),
    ):
        module.main([])


def test_folders_that_are_no_detectors_are_named(workdir, tmp_path, folder):
    with pytest.raises(UserError, match="not a run folder"):
        load(tmp_path)
    config = json.loads((workdir / "config.json").read_text())
    config["task"]["type"] = "tests.launch.detector:network"
    (tmp_path / "assets").mkdir()
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="not of a detector"):
        load(tmp_path)
    task = ColourTask(str(workdir / "assets"))
    broken = DetectionPipeline(task, {"params": {"shift": np.float32(np.nan)}, "stats": {}})
    with pytest.raises(UserError, match="not finite"):
        broken([folder / "0.png"], EXACT)
    assert read_coco(folder / "boxes.json").categories == task.spec.categories
