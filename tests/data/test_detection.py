"""Batches for detectors: a function of the step, alike from any number of hosts, few shapes, boxes on their pixels."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.detection import DetectionData
from data.detection_spec import DetectionSpec, choose_canvases, rounded, smallest
from data.errors import UserError
from data.pipeline import loader
from tests.data.coco_folder import content, find, random_set, write

SMALL = {"short": (48, 64), "longest": 96, "crop": 0.0, "batch": 4, "shapes": 3, "workers": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("coco")


@pytest.fixture(scope="module")
def path(folder: Path) -> str:
    return str(random_set(folder, 23))


def same(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


def test_a_batch_is_a_function_of_its_step_and_shared_by_hosts(path):
    data = DetectionData(path, **SMALL, seed=3)
    for step in (0, 7, 10**9):
        batch = data.train[step]
        assert {n: (a.shape, a.dtype) for n, a in batch.items()} in data.shapes
        same(batch, DetectionData(path, **SMALL | {"workers": 3}, seed=3).train[step])
        for count in (2, 4):
            hosts = [DetectionData(path, **SMALL, seed=3, host_index=i, host_count=count) for i in range(count)]
            parts = [host.train[step] for host in hosts]
            same(batch, {name: np.concatenate([part[name] for part in parts]) for name in batch})
    assert not np.array_equal(data.train[7]["boxes"], DetectionData(path, **SMALL, seed=4).train[7]["boxes"])


def test_the_store_and_the_files_give_the_same(path):
    prepared, files = (DetectionData(path, **SMALL, prepared=p) for p in (True, False))
    same(prepared.train[5], files.train[5])


def test_boxes_lie_on_their_pixels_and_padding_is_empty(path):
    data = DetectionData(path, **SMALL | {"crop": 0.3, "crop_short": (40, 50), "crop_range": (38, 60)})
    boxes = 0
    for step in range(40):
        batch = data.train[step]
        for image, (h, w), own, labels, valid in zip(
            *(batch[n] for n in ("image", "size", "boxes", "labels", "valid")), strict=True
        ):
            assert not image[h:].any() and not image[:, w:].any() and image[:h, :w].any(-1).all()
            assert not own[~valid].any() and not labels[~valid].any()
            for box, label in zip(own[valid], labels[valid], strict=True):
                if (labels[valid] == label).sum() == 1 and (box[2:] - box[:2]).min() > 4:
                    np.testing.assert_allclose(find(image, label), box, atol=2.1)
                    boxes += 1
    assert boxes > 50


def test_every_image_comes_once_in_a_pass(folder):
    """Images are told apart by their number of boxes and size; here all are of one shape."""
    sizes = [(64, 64)] * 8
    boxes = [[(0, [10 * j, 3, 10 * j + 3 + i, 9]) for j in range(1)] for i in range(8)]
    path = write(folder / "alike", content(sizes, boxes))
    data = DetectionData(str(path), **SMALL | {"short": (64,), "flip": 0.0})
    assert data.train.steps_per_pass == 2 and len(data.shapes) == 1
    for epoch in range(3):
        pair = [data.train[2 * epoch + i] for i in range(2)]
        widths = np.concatenate([b["boxes"][:, 0, 2] - b["boxes"][:, 0, 0] for b in pair])
        assert sorted(widths.tolist()) == list(range(3, 11))


def test_rare_classes_repeat(folder):
    """Class 2 is in one of eight images: with a threshold of .5 its image comes twice as often."""
    boxes = [[(2 if i == 5 else 0, [3, 3, 12 + i, 9])] for i in range(8)]
    path = write(folder / "rare", content([(64, 64)] * 8, boxes))
    data = DetectionData(str(path), **SMALL | {"short": (64,), "batch": 1, "repeat_threshold": 0.5})
    labels = np.concatenate([data.train[i]["labels"][:, 0] for i in range(90)])
    assert (labels == 2).mean() == pytest.approx(2 / 9, abs=0.01)


def test_held_out_images_come_once_whole_and_in_their_place(path):
    data = DetectionData(path, eval_json=path, **SMALL)
    assert data.held_out is not None
    seen = []
    for batch in data.evaluation:
        for i in np.flatnonzero(batch["mask"]):
            image = data.held_out.images[batch["position"][i]]
            seen.append(int(batch["position"][i]))
            scale = np.array([batch["size"][i, 1] / image.width, batch["size"][i, 0] / image.height] * 2)
            np.testing.assert_allclose(batch["boxes"][i][batch["valid"][i]], image.boxes * scale, rtol=1e-5)
            assert min(batch["size"][i]) == 64 or max(batch["size"][i]) == 96
    assert sorted(seen) == list(range(23)) and len({b["image"].shape for b in data.evaluation}) <= 3
    halves = [DetectionData(path, eval_json=path, **SMALL, host_index=i, host_count=2).evaluation for i in range(2)]
    for whole, *parts in zip(data.evaluation, *halves, strict=True):
        same(whole, {name: np.concatenate([part[name] for part in parts]) for name in whole})
    assert len(data.evaluation[:2]) == 2


def test_too_many_boxes_are_drawn_from_anew(folder):
    boxes = [[(0, [12 * j, 12 * k, 12 * j + 8, 12 * k + 8]) for j in range(5) for k in range(5)]]
    path = write(folder / "full", content([(64, 64)], boxes))
    data = DetectionData(str(path), **SMALL | {"short": (64,), "batch": 1, "max_boxes": 6, "flip": 0.0})
    assert "1 images have more boxes" in str(data.report)
    chosen = {tuple(map(tuple, data.train[i]["boxes"][0])) for i in range(5)}
    assert len(chosen) == 5 and all(data.train[i]["valid"].all() for i in range(5))
    whole = DetectionData(str(path), **SMALL | {"short": (64,), "batch": 1})
    assert whole.shapes[0]["boxes"][0] == (1, 32, 4) and whole.train[0]["valid"].sum() == 25


@given(st.lists(st.tuples(st.integers(30, 700), st.integers(30, 700)), min_size=1, max_size=40), st.integers(1, 5))
@settings(deadline=None, max_examples=60)
def test_canvases_hold_everything_and_more_of_them_waste_less(sizes, shapes):
    canvases = choose_canvases(sizes, 96, 160, shapes)
    assert len(canvases) <= max(shapes, 2) and all(side % 32 == 0 for canvas in canvases for side in canvas)
    spec = DetectionSpec(None, 96, 160, tuple(canvases))
    assert {spec.canvas(*size) for size in sizes} == set(canvases)
    areas = [np.prod([spec.canvas(*size) for size in sizes], axis=1).sum()]
    more = DetectionSpec(None, 96, 160, tuple(choose_canvases(sizes, 96, 160, shapes + 1)))
    areas.append(np.prod([more.canvas(*size) for size in sizes], axis=1).sum())
    assert areas[1] <= areas[0]


def test_the_smallest_canvas_is_taken():
    assert smallest(np.array([[30, 60], [60, 30], [64, 64], [65, 1]]), [(64, 64), (32, 64)]).tolist() == [1, 0, 0, 2]
    assert rounded((1, 64)) == (32, 64) and rounded((65, 33)) == (96, 64)
    assert choose_canvases([(480, 640), (640, 480), (500, 500)], 800, 1333, 1) == [(800, 1088), (1088, 800)]


def test_assets_come_back(path, folder):
    data = DetectionData(path, **SMALL)
    data.write_assets(str(folder))
    assert DetectionSpec.load(folder) == data.spec
    assert "23 images (4 without boxes)" in str(data.report)
    with pytest.raises(UserError, match=r"detection\.json: not found"):
        DetectionSpec.load(folder / "nowhere")
    (folder / "detection.json").write_text('{"classes": []}')
    with pytest.raises(UserError, match="is not what a detector's run writes"):
        DetectionSpec.load(folder)


def test_damaged_images_are_named_or_left_out(folder):
    path = str(random_set(folder / "damaged", 6))
    image = folder / "damaged" / "1.png"
    image.write_bytes(image.read_bytes()[:100])
    with pytest.raises(UserError, match=r"1 of 6 images cannot be used: 1 damaged files .*1\.png"):
        DetectionData(path, **SMALL)
    data = DetectionData(path, **SMALL, on_bad="skip", eval_json=path)
    assert data.held_out is not None and len(data.held_out.images) == 5 and "left out: 1 damaged" in str(data.report)
    boxes = {image.boxes.tobytes() for image in data.held_out.images}
    assert len(boxes) == len(
        {tuple(map(tuple, b["boxes"][i][b["valid"][i]])) for b in data.evaluation for i in range(4)}
    )
    unprepared = DetectionData(path, **SMALL, prepared=False)
    with pytest.raises(UserError, match=r"1\.png .*find all such by data\.prepared=True"):
        for step in range(20):
            unprepared.train[step]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"coco_json": ""}, "coco_json is not set"),
        ({"batch": 3, "row_multiple": 2}, "multiple of 2"),
        ({"short": (64,), "longest": 60}, "none of short above longest"),
        ({"crop_range": (60, 38)}, "low <= high"),
        ({"on_bad": "perhaps"}, "'perhaps' is not known"),
    ],
)
def test_what_cannot_be_is_named(path, options, message):
    with pytest.raises(UserError, match=message):
        DetectionData(**{"coco_json": path} | SMALL | options)


def test_sets_of_other_categories_do_not_go_together(path, folder):
    what = content([(64, 64)], [[(0, [1, 1, 20, 20])]])
    what["categories"][0]["name"] = "azure"
    with pytest.raises(UserError, match=r"have different categories, for example id 90"):
        DetectionData(path, eval_json=str(write(folder / "other", what)), **SMALL)


def test_the_loader_iterates(path):
    data = DetectionData(path, **SMALL | {"workers": 2})
    with loader(data.train, 4) as batches:
        for step in (4, 5, 6):
            same(next(batches), data.train[step])
