"""Golden rows of the detector's network: pooling, stages, the whole head, suppression and one-step detections."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from launch.verify.golden import GoldenFolder
from launch.verify.report import Report
from models.convert import detection
from models.detection.head import DynamicHead
from models.functional import Functional, Variables, functional
from models.layers.embed import time_sinusoid
from models.ops.boxes import nms
from models.ops.detections import best, resize, suppress
from models.ops.roi_align import assign_levels, roi_align

FEATURES, PIXELS = 1e-4, 1e-3  # of one stage: everything but boxes, boxes
POOLED, DETECTED = 2e-5, 1e-4
# Of the whole head, ten times what float32 and float64 differ by, for two stages and for six: logits, pixels.
SHALLOW, DEEP = (1.1e-4, 2.2e-3), (3.4e-3, 1.1e-2)
FORMS = ("dense", "gather")  # of ROIAlign


class Network:
    """The head of a golden folder; the folder stores the pyramid that it sees."""

    def __init__(self, folder: GoldenFolder):
        config = folder.config
        self.stages, self.dim = config["NUM_HEADS"], config["HIDDEN_DIM"]
        self.head, self.one_stage = (self._build(config, stages) for stages in (self.stages, 1))
        self._folder = folder

    def _build(self, config: Any, stages: int) -> Functional:
        return functional(
            lambda rngs: DynamicHead(
                num_classes=config["NUM_CLASSES"],
                dim=self.dim,
                stages=stages,
                heads=config["NHEADS"],
                hidden=config["DIM_FEEDFORWARD"],
                dynamic_dim=config["DIM_DYNAMIC"],
                class_layers=config["NUM_CLS"],
                box_layers=config["NUM_REG"],
                strides=config["feature_strides"],
                resolution=config["pooler_resolution"],
                samples=config["pooler_sampling_ratio"],
                box_weights=config["bbox_weights"],
                activation=config.get("activation", "relu"),
                rngs=rngs,
            )
        )

    def __call__(self, variables: Variables, boxes: jax.Array, time: jax.Array) -> tuple[jax.Array, jax.Array]:
        """logits [S, b, n, K] and boxes [S, b, n, 4] over the stored pyramid, or over its first images."""
        levels = tuple(level[: len(boxes)] for level in self.features)
        return self.head.apply(variables, levels, boxes, time)[0]

    @functools.cached_property
    def variables(self) -> Variables:
        """The golden weights as our variables."""
        abstract = {kind: {"head": tree} for kind, tree in self.head.abstract().items()}
        arrays, _ = detection.from_official(detection.load(self._folder.file("weights.safetensors")), abstract)
        return {kind: jax.tree.map(jnp.asarray, arrays[kind].get("head", {})) for kind in abstract}

    @functools.cached_property
    def features(self) -> tuple[np.ndarray, ...]:
        """The stored pyramid, [b, H, W, c], finest first."""
        stored = self._folder.arrays("features.npz")
        names = sorted((name for name in stored if re.fullmatch(r"p\d+", name)), key=lambda name: int(name[1:]))
        return tuple(stored[name].transpose(0, 2, 3, 1) for name in names)


def check(folder: GoldenFolder, network: Network, report: Report) -> None:
    """``features.npz``, ``rcnn_stage.npz``, ``dynamic_head.npz``, ``roi_align.npz``, ``nms.npz`` and
    ``inference_single_step.npz``."""
    checks = {
        "features": functools.partial(features, network, folder),
        "rcnn_stage": functools.partial(stage, network),
        "dynamic_head": functools.partial(whole, network),
        "roi_align": functools.partial(pooling, network, folder),
        "nms": suppression,
        "inference_single_step": functools.partial(single_step, folder.config["nms_threshold"]["diffusion"]),
    }
    for kind, run in checks.items():
        for name, _ in folder.names(rf"{kind}\.npz"):
            with report.guard(name):
                run(name, folder.arrays(name), report)


def features(network: Network, folder: GoldenFolder, file: str, stored: Any, report: Report) -> None:
    """That sizes and strides are understood as the reference understands them."""
    strides, padded = folder.config["feature_strides"], stored["padded_hw"]
    shapes = [level.shape[1:3] for level in network.features]
    report.equal(f"{file}:sizes of levels", shapes, [tuple(-(-int(side) // s) for side in padded) for s in strides])
    report.equal(f"{file}:image_whwh", np.tile(stored["image_hw"][:, ::-1], 2).tolist(), stored["image_whwh"].tolist())


def stage(network: Network, file: str, stored: Any, report: Report) -> None:
    """The first stage step by step; ``stage<i>_`` is another one, fed with what is stored of the one before."""

    def run(index, boxes, objects=None):
        params = network.variables["params"]
        params = {**params, "stages": jax.tree.map(lambda a: a[index : index + 1], params["stages"])}
        variables = {**network.variables, "params": params}
        apply = functools.partial(network.one_stage.apply, method="parts", keep_layers=True)
        found, _ = jax.jit(apply)(variables, network.features, boxes, stored["t"], None, objects)
        return {name: a if name == "time" else a[0] for name, a in found.items()}

    found = run(0, stored["boxes"])
    side = stored["roi_features"].shape[-1]
    seen = found["seen"].reshape(-1, side, side, network.dim).transpose(0, 3, 1, 2)
    sinusoid = time_sinusoid(jnp.asarray(stored["t"]), network.dim, scale=1.0)
    names = {
        **{"time_emb": "time", "self_attn_out": "attention", "dynconv_out": "filtered", "deltas": "deltas"},
        **{"logits": "logits", "pred_boxes": "boxes", "obj_features": "objects"},
    }
    outputs = {name: found[ours] for name, ours in names.items()} | {"time_sin": sinusoid, "roi_features": seen}
    for index in range(1, network.stages):
        before = f"stage{index - 1}_" if index > 1 else ""
        if f"stage{index}_logits" in stored:
            boxes, objects = stored[f"{before}pred_boxes"], stored[f"{before}obj_features"]
            found = run(index, boxes, objects.reshape(*boxes.shape[:2], network.dim))
            outputs |= {f"stage{index}_{name}": found[ours] for name, ours in names.items()}
    for key in stored:
        if key in outputs:
            tolerance = PIXELS if key.endswith("pred_boxes") else FEATURES
            report.close(f"{file}:{key}", "device", outputs[key].reshape(stored[key].shape), stored[key], tolerance)


def whole(network: Network, file: str, stored: Any, report: Report) -> None:
    """All stages."""
    logits, boxes = jax.jit(network)(network.variables, stored["boxes"], stored["t"])
    near, pixels = SHALLOW if network.stages <= 2 else DEEP
    report.close(f"{file}:logits", "device", logits, stored["logits"], near)
    report.close(f"{file}:pred_boxes", "device", boxes, stored["pred_boxes"], pixels)


def pooling(network: Network, folder: GoldenFolder, file: str, stored: Any, report: Report) -> None:
    """Both forms of ROIAlign over the pyramid and over one map."""
    strides, resolution = folder.config["feature_strides"], folder.config["pooler_resolution"]
    index, exists = assign_levels(stored["boxes"], strides)
    report.equal(f"{file}:levels", np.where(exists, index, -1).tolist(), stored["levels"].tolist())
    boxes = np.broadcast_to(stored["boxes"], (len(network.features[0]), *stored["boxes"].shape))
    mine = stored["image_index"], np.arange(len(stored["boxes"]))
    for form in FORMS:
        samples = folder.config["pooler_sampling_ratio"]
        pool = functools.partial(roi_align, strides=strides, resolution=resolution, samples=samples, impl=form)
        pooled = np.asarray(jax.jit(pool)(network.features, boxes))[mine].transpose(0, 3, 1, 2)
        for key in ("pooled", "pooled_ref_f64"):
            if key in stored:
                report.close(f"{file}:{key}", form, pooled, stored[key], POOLED)
        for key in stored:
            if match := re.fullmatch(r"single_sr(\d+)_al([01])", key):
                options = {"samples": int(match[1]), "aligned": match[2] == "1", "resolution": stored[key].shape[-1]}
                one = functools.partial(roi_align, strides=(1,), impl=form, **options)
                got = jax.jit(one)([stored["single_feature"].transpose(0, 2, 3, 1)], stored["single_boxes"][None])
                report.close(f"{file}:{key}", form, got[0].transpose(0, 3, 1, 2), stored[key], POOLED)


def suppression(file: str, stored: Any, report: Report) -> None:
    """``keep_<hundredths>`` by class, ``keep_classless_<hundredths>``: indices, best first."""
    order = np.argsort(-stored["scores"], kind="stable")
    for key in stored:
        if match := re.fullmatch(r"keep_(classless_)?(\d+)", key):
            labels = None if match[1] else stored["labels"]
            stays = np.asarray(nms(stored["boxes"], stored["scores"], int(match[2]) / 100, labels=labels))
            report.equal(f"{file}:{key}", order[stays[order]].tolist(), stored[key].tolist(), "device")


def single_step(threshold: float, file: str, stored: Any, report: Report) -> None:
    """Detections of every image, in the size that the network saw and in the original one (``post_``)."""
    logits, boxes = stored["logits"], stored["pred_boxes"]
    find = jax.jit(lambda logits, boxes: suppress(best(logits, boxes, boxes.shape[0]), threshold))
    for row in range(len(logits)):
        found = find(logits[row], boxes[row])
        seen = resize(found, stored["image_hw"][row], stored[f"orig_hw_{row}"])
        for prefix, some in (("", found), ("post_", seen)):
            valid = np.asarray(some.valid)
            for kind in ("boxes", "scores"):
                got, key = np.asarray(getattr(some, kind))[valid], f"{prefix}{kind}_{row}"
                report.close(f"{file}:{key}", "device", got, stored[key], DETECTED)
            key = f"{prefix}labels_{row}"
            report.equal(f"{file}:{key}", np.asarray(some.labels)[valid].tolist(), stored[key].tolist(), "device")
