"""Digits: a split that never moves, batches that depend on the step alone and hold every image once a pass."""

import dataclasses
import sys

import numpy as np
import pytest

from data.digits import TRAIN, DigitsData, load_split
from data.errors import UserError
from data.images import in_order, load_statistics


def test_the_split_is_all_of_scikit_learns_images_and_never_moves():
    from sklearn.datasets import load_digits

    (train, train_labels), (test, test_labels) = load_split("train"), load_split("test")
    assert train.shape == (TRAIN, 8, 8, 1) and test.shape == (597, 8, 8, 1)
    found = load_digits()
    ours = np.concatenate([train, test]).reshape(-1, 64) * 8 + 8
    labelled = np.column_stack([ours, np.concatenate([train_labels, test_labels])])
    truth = np.column_stack([found.images.reshape(-1, 64), found.target])
    np.testing.assert_array_equal(labelled[np.lexsort(labelled.T)], truth[np.lexsort(truth.T)])
    assert np.bincount(test_labels).min() > 40
    assert test_labels[:12].tolist() == [5, 0, 3, 4, 6, 7, 5, 5, 8, 1, 7, 1], "models and judges rely on this split"


def test_a_pass_holds_every_image_once_and_hosts_share_it():
    data = DigitsData(batch=100, seed=3)
    seen = np.concatenate([data.train[step]["image"] for step in range(TRAIN // 100)]).reshape(TRAIN, -1)
    images = load_split("train")[0].reshape(TRAIN, -1)
    np.testing.assert_array_equal(seen[np.lexsort(seen.T)], images[np.lexsort(images.T)])
    assert not np.array_equal(data.train[0]["image"], data.train[TRAIN // 100]["image"]), "shuffled anew"
    halves = [DigitsData(batch=100, seed=3, host_index=i, host_count=2).train[7] for i in range(2)]
    for name, array in data.train[7].items():
        np.testing.assert_array_equal(array, np.concatenate([half[name] for half in halves]), err_msg=name)
    assert {name: (a.shape, a.dtype) for name, a in data.train[0].items()} == data.shapes[0]


def test_held_out_batches_are_filled_up_with_rows_that_count_nothing():
    images, labels = load_split("test")
    batches = in_order(images, labels, 100)
    real = np.concatenate([b["mask"] for b in batches]) > 0
    assert real.sum() == len(images) and not real[-1]
    np.testing.assert_array_equal(np.concatenate([b["image"] for b in batches])[real], images)


def test_statistics_come_back(tmp_path):
    data = DigitsData(batch=8)
    data.write_assets(str(tmp_path))
    shape, classes, mean, std = load_statistics(tmp_path)
    images = load_split("train")[0]
    assert (shape, classes) == ((8, 8, 1), 10)
    assert mean == pytest.approx(images.mean(), abs=1e-5) and std == pytest.approx(images.std(), abs=1e-5)
    with pytest.raises(UserError, match="not found"):
        load_statistics(tmp_path / "elsewhere")


def test_without_scikit_learn_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("MURMURATION_CACHE", str(tmp_path))
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UserError, match=r"pip install -e .*images"):
        load_split("train")


def test_rows_that_cannot_be_shared_are_an_error():
    with pytest.raises(UserError, match="multiple of 8"):
        DigitsData(batch=12, row_multiple=8)


def test_the_report_is_for_people():
    report = DigitsData(batch=128).report
    assert "1200 images to train on, 597 held out" in str(report) and dataclasses.is_dataclass(report)
