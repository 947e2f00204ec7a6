"""Public detectors and backbones become folders with classes and weights, and what does not fit leaves nothing."""

import json

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from safetensors.numpy import save_file

from data.detection_spec import DetectionSpec
from data.errors import UserError
from launch.conversion.detection import convert_detector
from models.convert.detection import to_official
from models.functional import functional
from tests.models.detection import randomised
from tests.models.torch_archive import write_torch
from train.checkpoint import restore_variables
from train.components import bind
from train.workdir import ASSETS, read_config

CONFIG = ConfigDict(
    {
        "model": {
            "type": "models.detection.detector:Detector",
            "dim": 8,
            "backbone": {"type": "models.detection.resnet:ResNet", "depths": (1, 2), "width": 4},
            "head": {
                "type": "models.detection.head:DynamicHead",
                **{"stages": 2, "heads": 2, "hidden": 12, "dynamic_dim": 4, "resolution": 2},
            },
        },
        "data": {"short": (64, 96), "longest": 128},
    }
)


def network(classes: int):
    make = bind(CONFIG.model, "model")
    return functional(lambda rngs: make(num_classes=classes, rngs=rngs))


def classes_file(tmp_path, count: int):
    entries = [{"id": 10 * i, "name": f"thing {i}"} for i in range(count)]
    file = tmp_path / f"{count}.json"
    file.write_text(json.dumps({"images": [], "annotations": [], "categories": entries}))
    return str(file)


def test_a_detector_becomes_a_folder(tmp_path):
    variables = randomised(network(3))
    file = write_torch(tmp_path / "r50.pth", {"model": to_official(variables, "head_minus.")})
    lines = convert_detector(CONFIG, str(file), str(tmp_path / "out"))
    assert "missing 0" in lines and lines[-1].endswith("3 classes")
    back, _ = restore_variables(tmp_path / "out", network(3).abstract())
    jax.tree.map(np.testing.assert_array_equal, back, dict(variables))
    spec = DetectionSpec.load(tmp_path / "out" / ASSETS)
    assert spec.categories.names == ("class 1", "class 2", "class 3")
    assert (spec.short, spec.longest, spec.canvases) == (96, 128, ((96, 128), (128, 96)))
    assert read_config(tmp_path / "out")["model"]["backbone"]["width"] == 4


def test_other_classes_and_backbones_alone_start_fresh(tmp_path):
    variables = randomised(network(3))
    tensors = to_official(variables)
    file = tmp_path / "a.safetensors"
    save_file(tensors, file)
    lines = convert_detector(CONFIG, str(file), str(tmp_path / "five"), classes=classes_file(tmp_path, 5))
    assert any(line.startswith("fresh 4, to be trained: head.head_series.0.class_logits") for line in lines)
    back, _ = restore_variables(tmp_path / "five", network(5).abstract())
    np.testing.assert_allclose(back["params"]["head"]["stages"]["logits"]["bias"], -np.log(99), rtol=1e-5)
    kept = variables["params"]["head"]["stages"]["deltas"]["kernel"]
    np.testing.assert_array_equal(back["params"]["head"]["stages"]["deltas"]["kernel"], kept)
    assert DetectionSpec.load(tmp_path / "five" / ASSETS).categories.ids == (0, 10, 20, 30, 40)

    prefix = "backbone.bottom_up."
    save_file({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}, file)
    with pytest.raises(UserError, match="backbone alone; name a json"):
        convert_detector(CONFIG, str(file), str(tmp_path / "backbone"))
    convert_detector(CONFIG, str(file), str(tmp_path / "backbone"), classes=classes_file(tmp_path, 2))
    back, _ = restore_variables(tmp_path / "backbone", network(2).abstract())
    jax.tree.map(np.testing.assert_array_equal, back["params"]["backbone"], variables["params"]["backbone"])
    jax.tree.map(np.testing.assert_array_equal, back["stats"], variables["stats"])


def test_what_does_not_fit_leaves_nothing_behind(tmp_path):
    file, out = tmp_path / "a.safetensors", tmp_path / "out"
    tensors = to_official(randomised(network(3)))
    save_file(tensors | {"head.head_series.2.norm1.bias": np.zeros(8, np.float32)}, file)
    with pytest.raises(UserError, match=r"unexpected head\.head_series\.2\.norm1\.bias"):
        convert_detector(CONFIG, str(file), str(out))
    file.write_bytes(b"no tensors")
    with pytest.raises(UserError, match="not a safetensors file"):
        convert_detector(CONFIG, str(file), str(out))
    with pytest.raises(UserError, match="no such file"):
        convert_detector(CONFIG, str(tmp_path / "none.pth"), str(out))
    assert not out.exists()
