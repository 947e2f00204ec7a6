"""The detectors' task on a tiny network: padding and batches change nothing, every config builds and is covered."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import consistency_det, diffusion_det
from data.coco import Categories
from data.detection_spec import DetectionSpec
from data.errors import UserError
from sampling.noise import sample_keys
from train import sharding
from train.assemble import plain
from train.components import bind, build
from train.mesh import build_mesh
from train.task import StepContext
from train.tasks.detection import DetectionTask

COUNTS = {
    "coco_r50": 110.67,
    "coco_r101": 129.61,
    "coco_swin": 173.47,
    "lvis_r50": 112.41,
}  # millions, running statistics apart


def spec(folder, classes):
    names = tuple(str(i) for i in range(classes))
    DetectionSpec(Categories(names, tuple(range(classes)), (5,) * classes), 64, 64, ((64, 64),)).save(folder)
    return folder


def task_of(config, folder) -> DetectionTask:
    values = json.loads(json.dumps(plain(config)))
    return build(values["task"], "task", model=bind(values["model"], "model"), assets=str(folder), shapes=())


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    task = task_of(consistency_det.get_config("tiny"), spec(tmp_path_factory.mktemp("assets"), 3))
    return task, jax.jit(task.init)(jax.random.key(0))


def batch(rows=2, canvas=(32, 64), columns=4):
    """Images of 32 x 40 and 24 x 64 on a canvas, with one box and with two."""
    r = np.random.default_rng(0)
    sizes, image = [(32, 40), (24, 64)][:rows], np.zeros((rows, *canvas, 3), np.uint8)
    for row, (h, w) in enumerate(sizes):
        image[row, :h, :w] = r.integers(0, 255, (32, 64, 3))[:h, :w]
    boxes, valid = np.zeros((rows, columns, 4), np.float32), np.zeros((rows, columns), bool)
    boxes[:, 0], boxes[:, 1] = (4, 5, 20, 22), (10, 2, 36, 20)
    valid[:, 0], valid[1:, 1] = True, True
    labels = np.tile(np.arange(columns, dtype=np.int32) % 3, (rows, 1))
    index, mask = np.arange(rows, dtype=np.int32), np.ones(rows, np.float32)
    return {"image": image, "size": np.array(sizes, np.int32), "boxes": boxes, "labels": labels, "valid": valid,
            "index": index, "mask": mask}  # fmt: skip


def terms(task, variables, data):
    context = StepContext(jnp.int32(0), {"0.9": variables["params"]})
    return jax.jit(lambda v, b: task.loss(v, b, jax.random.key(1), context).terms)(variables, data)


def test_padding_of_images_and_of_boxes_changes_no_loss(tiny):
    task, variables = tiny
    small, large = terms(task, variables, batch()), terms(task, variables, batch(canvas=(64, 96), columns=8))
    assert {"class", "class_0", "l1", "giou", "consistency"} <= set(small)
    for name, term in small.items():
        np.testing.assert_allclose(large[name].sum, term.sum, rtol=1e-4, err_msg=name)
        assert large[name].weight == term.weight


def test_detections_of_a_batch_are_those_of_its_images(tiny):
    task, variables = tiny
    keys, data = sample_keys(jax.random.key(0), jnp.arange(2)), batch()
    run = jax.jit(task.detect, static_argnames=("steps", "proposals", "merge"))
    options = {"steps": 2, "proposals": 5, "merge": True}
    both = run(variables, data["image"], data["size"], keys, **options)
    assert both.boxes.shape == (2, 10, 4)
    for i in range(2):
        one = run(variables, data["image"][i : i + 1], data["size"][i : i + 1], keys[i : i + 1], **options)
        np.testing.assert_allclose(both.boxes[i], one.boxes[0], atol=1e-3)
        np.testing.assert_allclose(both.scores[i], one.scores[0], atol=1e-5)


@pytest.mark.parametrize("family", [diffusion_det, consistency_det])
def test_every_variant_builds_and_all_its_parameters_have_a_rule(family, tmp_path):
    """Abstractly; the counts are the releases'."""
    mesh = build_mesh({"data": 2, "fsdp": 2, "tensor": 2, "sequence": 1})
    for variant in family.VARIANTS:
        classes = {"lvis": 1203, "coco": 80}.get(variant.partition("_")[0], 10)
        task = task_of(family.get_config(variant), spec(tmp_path, classes))
        params = task.abstract()["params"]
        _, coverage = sharding.param_specs(task.axes(), params, mesh)
        leaves = jax.tree.leaves(params)
        assert not coverage.unmatched, (variant, coverage.unmatched)
        if variant in COUNTS:
            assert round(sum(math.prod(leaf.shape) for leaf in leaves) / 1e6, 1) == round(COUNTS[variant], 1), variant


def test_wrong_settings_are_named(tiny, tmp_path):
    config = consistency_det.get_config("tiny").unlock()
    config.task.path.boundary = 0.0
    with pytest.raises(UserError, match=r"config.task.objective: .* needs path.boundary > 0"):
        task_of(config, spec(tmp_path, 3))
    with pytest.raises(UserError, match="5 classes, this run 3"):
        tiny[0].check_assets(spec(tmp_path, 5))
    variables = tiny[1]
    with pytest.raises(UserError, match=r"config.task.target is 0.9, which is none of config.ema.decays"):
        tiny[0].loss(variables, batch(), jax.random.key(0), StepContext(jnp.int32(0), {}))
    with pytest.raises(ValueError, match="no variant 'huge'"):
        consistency_det.get_config("huge")
