"""The reader of COCO folders and the store of their images: what is wrong is named, what is put right is counted."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.coco import read_coco, repeat_factors
from data.coco_builder import CocoFolder, fingerprint, prepare
from data.errors import UserError
from data.pixels import Unreadable, load_pixels
from tests.data.coco_folder import content, random_set, write

SIZES = [(40, 60), (60, 40), (50, 50)]
BOXES = [[(0, [5, 6, 20, 30]), (2, [30, 10, 50, 35])], [], [(1, [0, 0, 50, 50])]]


def test_ids_with_gaps_become_classes_and_boxes_corners(tmp_path: Path):
    found = read_coco(write(tmp_path, content(SIZES, BOXES)))
    assert [image.id for image in found.images] == [10, 13, 16]
    assert found.categories.ids == (3, 7, 90) and found.categories.names == ("red", "green", "blue")
    assert found.categories.images == (1, 1, 1) and len(found.categories) == 3
    assert [image.labels.tolist() for image in found.images] == [[0, 2], [], [1]]
    np.testing.assert_array_equal(found.images[0].boxes, [[5, 6, 20, 30], [30, 10, 50, 35]])
    assert found.images[1].boxes.shape == (0, 4) and found.images[1].boxes.dtype == np.float32
    assert not found.problems and not found.repairs
    assert "3 images (1 without boxes), 3 boxes of 3 classes" in str(found)


def test_the_order_of_a_json_does_not_matter(tmp_path: Path):
    what = content(SIZES, BOXES)
    plain = read_coco(write(tmp_path / "a", what))
    for key in ("annotations", "categories"):
        what[key] = what[key][::-1]
    mixed = read_coco(write(tmp_path / "b", what))
    assert mixed.categories == plain.categories
    for a, b in zip(plain.images, mixed.images, strict=True):
        assert sorted(map(tuple, a.boxes.tolist())) == sorted(map(tuple, b.boxes.tolist()))


def test_repairs_are_made_and_counted(tmp_path: Path):
    what = content(
        SIZES,
        [
            [(0, [-10, 5, 20, 30]), (1, [50, 30, 80, 90]), (2, [10, 10, 10, 30])],  # two reach out, one has no width
            [(0, [30, 30, 20, 40]), (1, [45, 5, 55, 15]), (2, [-20, 0, -5, 9])],  # one is inverted, two are outside
            [(1, [0, 0, 50, 50]), (0, [10, 10, 20, 20]), (0, [-0.3, 0, 50.2, 9])],  # the last is rounding
        ],
    )
    what["annotations"][7]["iscrowd"] = 1
    found = read_coco(write(tmp_path, what))
    np.testing.assert_array_equal(found.images[0].boxes, [[0, 5, 20, 30], [50, 30, 60, 40]])
    assert len(found.images[1].boxes) == 0
    np.testing.assert_array_equal(found.images[2].boxes, [[0, 0, 50, 50], [0, 0, 50, 9]])
    assert {kind: len(entries) for kind, entries in found.repairs.found.items()} == {
        "crowds left out": 1,
        "boxes without area or with a negative side left out": 2,
        "boxes outside of their image left out": 2,
        "boxes cut at the border of their image": 2,
    }
    assert "1 crowds left out (annotation 2001)" in str(found)


def change(**changes):
    """A change of the first annotation, image or category: ``images_id=3`` sets images[0]["id"]."""

    def apply(what):
        for place, value in changes.items():
            key, _, field = place.partition("_")
            what[key][0][field] = value

    return apply


@pytest.mark.parametrize(
    "edit, message",
    [
        (lambda w: w.pop("annotations"), r"has no key 'annotations' \(it has images, categories\)"),
        (lambda w: w.update(images=5), "'images' is not a list of objects"),
        (change(annotations_bbox=[1, 2, 3]), r"annotations\[0\] \(id 0\) has bbox \[1, 2, 3\]; expected four finite"),
        (change(annotations_bbox=[1, 2, float("nan"), 3]), "expected four finite numbers"),
        (change(annotations_bbox=None), "expected four finite numbers"),
        (change(annotations_category_id=4), r"is of category 4, which is not listed .*begin with 3, 7, 90"),
        (change(annotations_image_id=11), r"is of image 11, which is not listed .*begin with 10, 13, 16"),
        (change(annotations_image_id="10"), "has image_id '10'; expected a whole number"),
        (change(images_id=13), r"images\[1\] has id 13, like an earlier one"),
        (change(categories_id=7), "has id 7, like an earlier one"),
        (change(images_height=0), "image 10 has height and width .0, 60."),
        (change(images_file_name=""), "image 10 has neither file_name nor coco_url"),
        (lambda w: w.update(annotations=[]), "none of its 0 annotations is a usable box"),
        (lambda w: [a.update(iscrowd=1) for a in w["annotations"]], r"is a usable box \(3 crowds left out"),
        (change(images_file_name="gone.png"), "1 of 3 images cannot be used: 1 missing files .gone.png.*on_bad=skip"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, edit, message: str):
    what = content(SIZES, BOXES)
    write(tmp_path, what)
    edit(what)
    with pytest.raises(UserError, match=message):
        read_coco(write(tmp_path, what, pictures=False))


def test_files_that_are_no_json_are_named(tmp_path: Path):
    with pytest.raises(UserError, match="cannot be read"):
        read_coco(tmp_path / "none.json")
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        read_coco(tmp_path / "a.json")
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(UserError, match="it has a list"):
        read_coco(tmp_path / "a.json")
    with pytest.raises(UserError, match="no such folder of images"):
        read_coco(tmp_path / "a.json", tmp_path / "images")


def test_missing_files_can_be_left_out(tmp_path: Path):
    path = write(tmp_path, content(SIZES, BOXES))
    (tmp_path / "0.png").unlink()
    found = read_coco(path, on_bad="skip")
    assert [image.id for image in found.images] == [13, 16] and "left out: 1 missing files (0.png)" in str(found)
    (tmp_path / "2.png").unlink()
    with pytest.raises(UserError, match="no image with a box has a usable file"):
        read_coco(path, on_bad="skip")


def test_lvis_names_images_by_address_and_counts_them(tmp_path: Path):
    what = content(SIZES, BOXES)
    write(tmp_path / "train2017", what)
    for image in what["images"]:
        image["coco_url"] = f"http://images.example.org/train2017/{image.pop('file_name')}"
    for category in what["categories"]:
        category |= {"frequency": "r", "image_count": 100 + category["id"]}
    (tmp_path / "lvis.json").write_text(json.dumps(what))
    found = read_coco(tmp_path / "lvis.json", tmp_path)
    assert found.images[2].file == tmp_path / "train2017" / "2.png"
    assert found.categories.images == (103, 107, 190)
    np.testing.assert_allclose(repeat_factors(found.images, 3, 0.75), [1.5, 1.0, 1.5])  # sqrt(.75 / (1/3)), empty: 1


def test_sizes_come_from_the_files_where_the_json_has_none(tmp_path: Path):
    what = content(SIZES, BOXES)
    write(tmp_path, what)
    for image in what["images"]:
        del image["height"], image["width"]
    found = read_coco(write(tmp_path, what, pictures=False))
    assert [(image.height, image.width) for image in found.images] == SIZES


def test_every_kind_of_pixels_becomes_rgb(tmp_path: Path):
    ramp = np.arange(0, 240, 2, dtype=np.uint8).reshape(10, 12)
    grey = np.repeat(ramp[..., None], 3, 2)
    for mode, name, kind in (("L", "a.png", "grey"), ("RGB", "b.png", "RGB"), ("RGBA", "c.png", "RGB with alpha")):
        Image.fromarray(grey).convert(mode).save(tmp_path / name)
        pixels, found = load_pixels(tmp_path / name, (10, 12))
        np.testing.assert_array_equal(pixels, grey)
        assert found == kind and pixels.dtype == np.uint8
    Image.fromarray(ramp.astype(np.uint16) * 256 + 77).save(tmp_path / "d.png")
    pixels, found = load_pixels(tmp_path / "d.png")
    np.testing.assert_array_equal(pixels, grey)
    assert found == "16-bit"
    Image.fromarray(grey).convert("CMYK").save(tmp_path / "e.jpg", quality=98)
    assert np.abs(load_pixels(tmp_path / "e.jpg")[0].astype(int) - grey).max() < 12


def test_orientation_is_obeyed_only_where_the_size_asks_for_it(tmp_path: Path):
    picture = np.random.default_rng(0).integers(0, 255, (10, 12, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to see it upright
    Image.fromarray(picture).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(load_pixels(tmp_path / "a.png", (10, 12))[0], picture)
    np.testing.assert_array_equal(load_pixels(tmp_path / "a.png", (12, 10))[0], np.rot90(picture, -1))
    with pytest.raises(Unreadable, match="is 12x10 pixels, not 13x10"):
        load_pixels(tmp_path / "a.png", (10, 13))


def test_a_store_holds_the_images_and_names_the_damaged(tmp_path: Path):
    path = random_set(tmp_path, 9)
    images = read_coco(path).images
    whole = (tmp_path / "2.png").read_bytes()
    (tmp_path / "2.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "5.png").write_bytes(b"no image")
    Image.fromarray(np.zeros((7, 8), np.uint8)).save(tmp_path / "6.png")
    store = prepare(images, tmp_path / "cache")
    assert sorted(store.failed) == [2, 5, 6] and "is 8x7 pixels, not 64x64" in store.failed[6]
    assert "truncated" in store.failed[2] and str(tmp_path / "2.png") in store.failed[2]
    assert store.kinds == {"RGB": 6}
    usable = [image for i, image in enumerate(images) if i not in store.failed]
    for i, image in enumerate(usable):
        np.testing.assert_array_equal(store.pixels(i), load_pixels(image.file)[0])
    builder = CocoFolder(data_dir=str(next((tmp_path / "cache").glob("*/"))))
    records = builder.as_data_source(split="images")
    assert [record["id"] for record in records] == [image.id for image in usable]
    for record, image in zip(records, usable, strict=True):
        np.testing.assert_array_equal(record["boxes"].reshape(-1, 4), image.boxes)
        np.testing.assert_array_equal(record["labels"], image.labels)


def test_the_store_follows_its_files(tmp_path: Path):
    images = read_coco(random_set(tmp_path, 4)).images
    first = fingerprint(images)
    assert first == fingerprint(read_coco(tmp_path / "boxes.json").images)
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes() + b" ")
    assert fingerprint(images) != first
