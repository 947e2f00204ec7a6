"""Public names of detectors and backbones: there and back bit for bit; what does not fit is named."""

import pickle
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from models.convert import detection as convert
from models.convert.f5_names import flatten
from models.convert.f5_tts import Misfit
from tests.models import detection
from tests.models.torch_archive import write_torch

WEIGHTS = Path(__file__).resolve().parent.parent / "golden" / "consistency_det" / "weights.safetensors"


def numbers(backbone: str, seed: int = 0) -> dict:
    """Variables of a detector as numpy arrays."""
    return jax.tree.map(np.asarray, detection.randomised(detection.detector(backbone), seed))


def same(a, b) -> None:
    a, b = dict(flatten(a)), dict(flatten(b))
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.mark.parametrize("backbone", ["resnet", "swin"])
@pytest.mark.parametrize("head", convert.HEADS)
def test_a_detector_goes_there_and_back(tmp_path, backbone, head):
    """With the buffers of a release around it, as a file of PyTorch."""
    variables, model = numbers(backbone), detection.detector(backbone)
    tensors = convert.to_official(variables, head)
    assert all(name.startswith(("backbone.", head)) for name in tensors)
    buffers = dict.fromkeys(convert.BUFFERS, np.zeros(1000))
    if backbone == "swin":
        buffers["backbone.bottom_up.layers.0.blocks.0.attn.relative_position_index"] = np.zeros((9, 9), np.int64)
    file = write_torch(tmp_path / "a.pth", {"model": tensors | buffers, "iteration": 3})
    back, report = convert.from_official(convert.load(file), model.abstract())
    same(back, variables)
    assert set(report.dropped) == set(buffers) and not report.fresh


def test_stored_weights_keep_their_names_and_layout():
    tensors, model = (
        load_file(WEIGHTS),
        detection.head(stages=2, dim=32, heads=4, hidden=64, dynamic_dim=8, resolution=7),
    )
    abstract = {kind: {"head": tree} for kind, tree in model.abstract().items()}
    back = convert.to_official(convert.from_official(tensors, abstract)[0])
    assert back.keys() == tensors.keys()
    for name, array in tensors.items():
        np.testing.assert_array_equal(back[name], array, err_msg=name)


def as_torchvision(name: str) -> str:
    """detectron2's name of a ResNet tensor -> torchvision's."""
    name = re.sub(r"^stem\.conv1\.norm", "bn1", name)
    name = re.sub(r"^stem\.conv1", "conv1", name)
    name = re.sub(r"^res(\d)", lambda m: f"layer{int(m[1]) - 1}", name)
    name = re.sub(r"shortcut\.norm", "downsample.1", name)
    name = re.sub(r"shortcut", "downsample.0", name)
    return re.sub(r"conv(\d)\.norm", r"bn\1", name)


@pytest.mark.parametrize("kind", ["torchvision", "detectron2", "swin"])
def test_a_backbone_alone_leaves_the_rest_fresh(tmp_path, kind):
    backbone = "swin" if kind == "swin" else "resnet"
    variables, model = numbers(backbone), detection.detector(backbone)
    outputs = re.compile(re.escape(convert.BOTTOM_UP) + r"norm\d\..*")  # Swin's norms of the maps, for detection only
    own = {
        name.removeprefix(convert.BOTTOM_UP): array
        for name, array in convert.to_official(variables).items()
        if name.startswith(convert.BOTTOM_UP) and not outputs.fullmatch(name)
    }
    if kind == "torchvision":
        own = {as_torchvision(name): array for name, array in own.items()}
        own |= {"fc.weight": np.zeros((10, 4), np.float32), "bn1.num_batches_tracked": np.zeros((), np.int64)}
        file = write_torch(tmp_path / "resnet50.pth", own)
    elif kind == "detectron2":
        file = tmp_path / "R-50.pkl"
        content = {"model": own | {"stem.fc.bias": np.zeros(3, np.float32)}, "matching_heuristics": True}
        file.write_bytes(pickle.dumps(content, protocol=2))
    else:
        own |= {"norm.weight": np.zeros(4, np.float32), "head.bias": np.zeros(4, np.float32)}
        own["layers.0.blocks.1.attn_mask"] = np.zeros((4, 9, 9), np.float32)
        file = write_torch(tmp_path / "swin.pth", {"model": own})
    other = numbers(backbone, seed=1)
    back, report = convert.from_official(convert.load(file), model.abstract(), lambda: other)
    for path, array in flatten(back):
        fresh = convert.FRESH.fullmatch(path.split("/", 1)[1])
        wanted = dict(flatten(other if fresh else variables))[path]
        np.testing.assert_array_equal(array, wanted, err_msg=path)
    assert report.fresh and report.dropped and all(name.startswith(("head.", "backbone.")) for name in report.fresh)
    with pytest.raises(Misfit, match=r"missing backbone\.(bottom_up\.norm0|fpn_lateral2)"):
        convert.from_official(convert.load(file), model.abstract())


def test_what_does_not_fit_is_named(tmp_path):
    model, tensors = detection.detector("resnet"), convert.to_official(numbers("resnet"))
    last = "head.head_series.2.class_logits.weight"
    for changed, message in (
        (
            {k: v for k, v in tensors.items() if "res3.0.shortcut.norm.bias" not in k},
            r"missing .*res3\.0\.shortcut\.norm",
        ),
        (
            tensors | {last: np.zeros((80, 16), np.float32)},
            r"class_logits\.weight has shape \(80, 16\), expected \(5, 16\)",
        ),
        (tensors | {"head.extra": np.zeros(1, np.float32)}, r"unexpected head\.extra"),
        (tensors | {last: np.full((5, 16), np.nan, np.float32)}, r"NaN or infinity in .*class_logits"),
    ):
        save_file(changed, tmp_path / "a.safetensors")
        with pytest.raises(Misfit, match=message):
            convert.from_official(convert.load(tmp_path / "a.safetensors"), model.abstract())
    (tmp_path / "evil.pkl").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(ValueError, match=r"asks for os\.system"):
        convert.load(tmp_path / "evil.pkl")
    (tmp_path / "half.pkl").write_bytes(pickle.dumps({"model": np.zeros(9)})[:-7])
    with pytest.raises(ValueError, match="damaged"):
        convert.load(tmp_path / "half.pkl")
    (tmp_path / "list.pkl").write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(ValueError, match="no state dict"):
        convert.load(tmp_path / "list.pkl")


def test_new_classes_take_all_but_the_classifiers():
    variables, other = numbers("resnet"), numbers("resnet", seed=1)
    tensors = convert.to_official(variables)
    assert convert.num_classes(tensors) == 5
    abstract = detection.detector("resnet").abstract()
    back, report = convert.from_official(tensors, abstract, lambda: other, new_classes=True)
    other["params"]["head"]["stages"] = variables["params"]["head"]["stages"] | {
        "logits": other["params"]["head"]["stages"]["logits"]
    }
    variables["params"]["head"] = variables["params"]["head"] | {"stages": other["params"]["head"]["stages"]}
    same(back, variables)
    assert len(report.fresh) == 6 and set(report.fresh) == set(report.dropped)
