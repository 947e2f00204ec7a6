# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false
"""DiffusionDet: boxes denoised out of random ones (Chen et al. 2022, arXiv:2211.09788).

    python -m launch.run_train --config=configs/diffusion_det.py:coco_r50 --workdir=runs/r50 --init_from=IMAGENET \\
        --config.data.coco_json=instances_train2017.json --config.data.images=train2017 \\
        --config.data.eval_json=instances_val2017.json --config.data.eval_images=val2017

IMAGENET is a backbone's folder, made by `launch.run_convert`.  Variants:
  coco_r50, coco_r101, coco_swin   batch 16, 450k updates; 39 hours on 8 A100s for R50.  Published AP on val2017, 500
                                   boxes, 1 step / 4 steps: 45.5 / 46.1, 46.6 / 46.9, 52.3 / 52.7.
  lvis_r50, lvis_r101, lvis_swin   270k updates, federated loss.  Published: 30.4 / 31.8, 31.9 / 32.9, 40.6 / 41.9.
  digits                           scenes of handwritten digits, minutes on two CPU cores; see docs/detection.md.
  tiny                             seconds, for tests.

Seeds differ by 0.1 to 0.15 AP.  Any COCO folder of your own: the `coco` variants with its json.
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from configs.base import base

VARIANTS = ("coco_r50", "coco_r101", "coco_swin", "lvis_r50", "lvis_r101", "lvis_swin", "digits", "tiny")


def get_config(variant: str = "coco_r50") -> ConfigDict:
    """The locked config of one variant; raises ValueError for an unknown name."""
    if variant not in VARIANTS:
        raise ValueError(f"configs/diffusion_det.py has no variant {variant!r}; choose one of {', '.join(VARIANTS)}")
    return build(variant, diffusion).lock()


def build(variant: str, objective: Callable[[ConfigDict], None]) -> ConfigDict:
    """The unlocked config of a variant, ``objective`` being what sets path and objective of a family."""
    c = base()
    c.task = ConfigDict({"type": "train.tasks.detection:DetectionTask"})
    size, _, backbone = variant.partition("_")
    {"coco": coco, "lvis": lvis, "digits": digits, "tiny": tiny}[size](c)
    if backbone:
        {"r50": r50, "r101": r101, "swin": swin}[backbone](c)
    objective(c)
    return c


def diffusion(c: ConfigDict) -> None:
    """x0 prediction on the cosine schedule."""
    c.task.path = ConfigDict({"type": "sampling.box_paths:CosineBoxes", "timesteps": 1000, "scale": 2.0, "eta": 1.0})
    c.task.objective = ConfigDict({"type": "train.objectives.box_denoising:BoxDenoising"})


def published(c: ConfigDict) -> None:
    """What the released detectors share."""
    c.task.proposals = 500
    c.task.target = 0.0  # decay of the average that an objective's own targets come from; 0 = the network itself
    c.task.judged = 0  # classes that an image is judged by; 0 = all
    c.task.padding = "reference"  # as the released weights were trained
    c.task.renewal = 0.5
    c.task.overlap = 0.5
    set_loss(c)

    c.model = ConfigDict({"type": "models.detection.detector:Detector", "dim": 256})
    c.model.head = ConfigDict({"type": "models.detection.head:DynamicHead"})
    c.model.head.stages = 6
    c.model.head.heads = 8
    c.model.head.hidden = 2048
    c.model.head.dynamic_dim = 64
    c.model.head.class_layers = 1
    c.model.head.box_layers = 3
    c.model.head.roi_impl = "auto"
    c.model.head.remat = "none"

    c.data = ConfigDict({"type": "data.detection:DetectionData"})
    c.data.coco_json = ""
    c.data.images = ""
    c.data.eval_json = ""
    c.data.eval_images = ""
    c.data.batch = 16
    c.data.short = tuple(range(480, 801, 32))
    c.data.longest = 1333
    c.data.flip = 0.5
    c.data.crop = 0.5
    c.data.crop_short = (400, 500, 600)
    c.data.crop_range = (384, 600)
    c.data.shapes = 4
    c.data.max_boxes = 0
    c.data.repeat_threshold = 0.0
    c.data.prepared = True
    c.data.on_bad = "error"

    c.optim.lr = 2.5e-5
    c.optim.weight_decay = 1e-4
    c.optim.clip_norm = 1.0
    c.optim.schedule = "constant"
    c.optim.warmup_steps = 1000
    c.optim.init_lr_ratio = 0.01
    c.ema.decays = (0.999,)  # the release keeps one and does not use it
    c.log.every = 50
    c.evaluation.every = 10_000
    c.checkpoint.every = 5000


def set_loss(c: ConfigDict) -> None:
    """The criterion, with the published weights."""
    c.task.criterion = ConfigDict({"type": "train.objectives.set_prediction:SetPrediction"})
    c.task.criterion.classes = 2.0
    c.task.criterion.l1 = 5.0
    c.task.criterion.giou = 2.0
    c.task.criterion.count = "matched"  # what terms are divided by: targets | matched | release
    c.task.criterion.matcher = ConfigDict({"type": "train.objectives.matching:SimOTA"})


def coco(c: ConfigDict) -> None:
    """450k updates, a tenth of the rate after 350k and 420k."""
    published(c)
    c.steps = 450_000
    c.optim.milestones = (350_000, 420_000)


def lvis(c: ConfigDict) -> None:
    """Rare classes repeated, each image judged by 50 classes."""
    published(c)
    c.steps = 270_000
    c.optim.milestones = (210_000, 250_000)
    c.task.judged = 50
    c.data.repeat_threshold = 0.001


def r50(c: ConfigDict) -> None:
    """110.67 M parameters with 80 classes."""
    c.model.backbone = ConfigDict({"type": "models.detection.resnet:ResNet", "depth": 50, "freeze_at": 2})


def r101(c: ConfigDict) -> None:
    """129.61 M."""
    r50(c)
    c.model.backbone.depth = 101


def swin(c: ConfigDict) -> None:
    """Swin-B, 173.47 M; nothing is frozen."""
    c.model.backbone = ConfigDict({"type": "models.detection.swin:Swin", "drop_path": 0.3})


def small(c: ConfigDict, widths: tuple[int, ...], dim: int, stages: int) -> None:
    """A network that learns from scratch."""
    c.task.proposals = 24
    c.task.target = 0.0
    c.task.padding = "exact"
    c.task.renewal = 0.5
    c.task.overlap = 0.5
    set_loss(c)
    c.model = ConfigDict({"type": "models.detection.detector:Detector", "dim": dim, "levels": 1})
    c.model.backbone = ConfigDict({"type": "models.detection.small:SmallBackbone", "widths": widths})
    c.model.backbone.depths = (1,) * len(widths)
    c.model.head = ConfigDict({"type": "models.detection.head:DynamicHead"})
    c.model.head.stages = stages
    c.model.head.heads = 4
    c.model.head.hidden = 4 * dim
    c.model.head.dynamic_dim = dim // 4
    c.model.head.class_layers = 1
    c.model.head.box_layers = 1
    c.model.head.resolution = 5
    c.model.head.samples = 1
    c.data = ConfigDict({"type": "data.digit_scenes:DigitScenes"})
    c.data.train_scenes = 6000
    c.data.held_out_scenes = 300
    c.data.sizes = (64,)
    c.data.digit = (14, 28)
    c.data.objects = (1, 5)
    c.data.overlap = 0.15
    c.data.batch = 16


def digits(c: ConfigDict) -> None:
    """Scenes of 64 x 64 with one to five digits."""
    small(c, widths=(64, 96, 128), dim=96, stages=2)
    c.steps = 3000
    c.optim.lr = 7e-4
    c.optim.b2 = 0.99
    c.optim.warmup_steps = 100
    c.ema.decays = (0.998,)
    c.log.every = 50
    c.evaluation.every = 1000
    c.sample.every = 1000
    c.checkpoint.every = 500


def tiny(c: ConfigDict) -> None:
    """Compiles and runs in seconds."""
    small(c, widths=(16, 16), dim=16, stages=2)
    c.task.proposals = 8
    c.data.train_scenes, c.data.held_out_scenes, c.data.batch = 16, 8, 8
    c.steps = 3
    c.optim.warmup_steps = 1
    c.ema.decays = (0.9,)
    c.log.every = 1
    c.evaluation.every = 0
    c.sample.every = 0
    c.checkpoint.every = 0
