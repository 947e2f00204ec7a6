"""PyTorch files: numbers come out as they went in, and nothing in them runs."""

import zipfile
from pathlib import Path

import numpy as np
import pytest

from models.convert.torch_file import read_torch
from tests.models.torch_archive import Raw, tensor, write_torch


def test_tensors_and_containers_come_back(tmp_path):
    r = np.random.default_rng(0)
    arrays = {
        "a.weight": r.normal(size=(3, 4)).astype(np.float32),
        "a.half": r.normal(size=5).astype(np.float16),
        "step": np.array(7, np.int64),
        "none": np.zeros((0, 3), np.float32),
    }
    path = write_torch(tmp_path / "a.pt", {"model": arrays, "lr": 0.5, "betas": [1, 2], "name": "adamw"})
    found = read_torch(path)
    assert (found["lr"], found["betas"], found["name"]) == (0.5, [1, 2], "adamw")
    assert list(found["model"]) == list(arrays)
    for name, want in arrays.items():
        assert found["model"][name].dtype == want.dtype
        np.testing.assert_array_equal(found["model"][name], want)


def test_views_share_a_storage_and_bfloat16_is_exact(tmp_path):
    numbers = np.arange(12, dtype=np.float32)
    transposed = tensor("FloatStorage", 0, 12, 1, (4, 2), (1, 4), parameter=True)
    upper = (np.array([1.0, -2.5, 3e30], np.float32).view(np.uint32) >> 16).astype("<u2")
    path = write_torch(tmp_path / "a.pt", {"whole": numbers, "part": transposed, "b": tensor_of(upper)})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/data/9", upper.tobytes())
    found = read_torch(path)
    np.testing.assert_array_equal(found["part"], numbers[1:9].reshape(2, 4).T)
    np.testing.assert_allclose(found["b"], [1.0, -2.5, 3e30], rtol=1e-2)
    assert found["b"][1] == -2.5


def tensor_of(upper: np.ndarray) -> Raw:
    return tensor("BFloat16Storage", 9, len(upper), 0, (len(upper),), (1,))


@pytest.mark.parametrize(
    "call",
    [b"cos\nsystem\n(X\x06\x00\x00\x00touch xtR", b"cbuiltins\neval\n(X\x01\x00\x00\x001tR", b"cposix\nsystem\n"],
)
def test_a_malicious_pickle_is_refused_by_name(tmp_path, call):
    path = write_torch(tmp_path / "evil.pt", {"weights": np.ones(2, np.float32), "x": Raw(call)})
    module, name = call[1:].split(b"\n")[:2]
    with pytest.raises(ValueError, match=rf"asks for {module.decode()}\.{name.decode()}"):
        read_torch(path)


@pytest.mark.parametrize(
    "size, stride, offset", [((4, 4), (4, 1), 0), ((2,), (-1,), 3), ((3,), (1,), 10), ((99,), (0,), 0)]
)
def test_a_tensor_cannot_reach_outside_its_storage(tmp_path, size, stride, offset):
    bad = tensor("FloatStorage", 0, 12, offset, size, stride)
    path = write_torch(tmp_path / "a.pt", {"a": np.zeros(12, np.float32), "b": bad})
    with pytest.raises(ValueError, match="outside its storage"):
        read_torch(path)


def test_other_files_are_named(tmp_path):
    other: Path = tmp_path / "a.pt"
    other.write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(ValueError, match=r"a\.pt is not a PyTorch checkpoint"):
        read_torch(other)
    short = write_torch(tmp_path / "b.pt", {"a": tensor("FloatStorage", 5, 12, 0, (12,), (1,))})
    with pytest.raises(ValueError, match="damaged PyTorch checkpoint"):
        read_torch(short)
