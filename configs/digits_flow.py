# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false
"""Class-conditional digits of 8 x 8 pixels: every objective of generative training on one small transformer.

    python -m launch.run_train --config=configs/digits_flow.py:flow --workdir=runs/flow
    python -m launch.run_sample --workdir=runs/flow --labels=0,1,2,3 --out=digits.png

Variants, each minutes on two CPU cores.  Accuracy by the judge and Fréchet distance (``launch.evaluation.images``) at
so many network calls; intervals and more settings stand in the README:
  flow        flow matching (logit-normal times), the model of the curves: 0.996, 0.25 at 16 by DPM-Solver++(2M).
  weak        the same, smaller and stopped early: autoguidance leads away from it, which does not help here.
  edm         EDM's denoiser on the VE path; the teacher of ``cd``.
  ict         improved consistency training: 0.982, 0.33 at 1; 0.984, 0.32 at 2.
  ct          consistency training as first published, for which so few steps are far from enough: 0.107, 21.5 at 1;
              0.784, 1.68 at 4.
  cd          consistency distillation: --init_from=EDM --config.task.teacher=EDM, the folder of an ``edm`` run:
              0.985, 0.31 at 1; 0.992, 0.47 at 2.
  scm         continuous-time consistency training on the circle: 0.970, 0.37 at 1; 0.979, 0.37 at 2.
  mean_flow   average velocities: 0.998, 0.50 at 1; 0.998, 0.34 at 2.
  shortcut    velocities that know the length of the step: 0.985, 0.62 at 1; 0.992, 0.33 at 4.
  tiny        seconds, for tests.
"""

import math
from typing import Any

from ml_collections import ConfigDict

from configs.base import base

VARIANTS = ("flow", "weak", "edm", "ict", "ct", "cd", "scm", "mean_flow", "shortcut", "tiny")
UNIT = math.log(2.0)  # the papers' noise levels are for data of deviation 0.5, here it is 1


def get_config(variant: str = "flow") -> ConfigDict:
    """The locked config of one variant; raises ValueError for an unknown name."""
    if variant not in VARIANTS:
        raise ValueError(f"configs/digits_flow.py has no variant {variant!r}; choose one of {', '.join(VARIANTS)}")
    c = base()
    digits(c)
    {"flow": flow, "weak": weak, "edm": edm, "ict": ict, "ct": ct, "cd": cd, "scm": scm, "mean_flow": mean_flow,
     "shortcut": shortcut, "tiny": tiny}[variant](c)  # fmt: skip
    return c.lock()


def digits(c: ConfigDict) -> None:
    """What all variants share."""
    c.task = ConfigDict()
    c.task.type = "train.tasks.images:ImageTask"
    c.task.label_drop = 0.1
    c.task.teacher = ""
    c.task.target = 0.0  # decay of the average that targets come from; 0 = the network itself
    c.task.steps = 16  # network calls of samples made while training

    c.model = ConfigDict()
    c.model.type = "models.image_dit:ImageDiT"
    c.model.dim = 96
    c.model.depth = 4
    c.model.heads = 4
    c.model.ff_mult = 4.0
    c.model.patch = 4
    c.model.uncertainty = False
    c.model.time_scale = 1000.0
    c.model.remat = "none"
    c.model.scan_layers = True
    c.model.attn_impl = "forward"

    c.data = ConfigDict()
    c.data.type = "data.digits:DigitsData"
    c.data.batch = 64

    c.steps = 4000
    c.optim.lr = 2e-3
    c.optim.b2 = 0.99
    c.optim.warmup_steps = 100
    c.ema.decays = (0.998,)
    c.log.every = 100
    c.evaluation.every = 1000
    c.sample.every = 1000
    c.checkpoint.every = 1000


def flow(c: ConfigDict) -> None:
    """Flow matching with the times of Stable Diffusion 3."""
    c.task.path = ConfigDict({"type": "sampling.paths:FlowPath", "data_time": 1.0})
    c.task.objective = ConfigDict({"type": "train.objectives.denoising:Denoising", "prediction": "velocity"})
    times(c, mean=0.0, std=1.0)


def weak(c: ConfigDict) -> None:
    """Half as wide, a tenth as long."""
    flow(c)
    c.steps = 400
    c.model.dim, c.model.depth, c.model.heads = 48, 2, 2
    c.evaluation.every = 0
    c.sample.every = 0
    c.checkpoint.every = 0


def times(c: ConfigDict, mean: float, std: float) -> None:
    """ln(σ/α) of the training's noise levels is N(mean, std²)."""
    c.task.objective.time = "log_normal"
    c.task.objective.time_mean, c.task.objective.time_std = mean, std


def variance_exploding(c: ConfigDict, sigma_min: float) -> None:
    """Noise levels of EDM and of consistency models, for data of deviation 1."""
    path = {"type": "sampling.paths:VE", "sigma_min": sigma_min, "sigma_max": 80.0, "sigma_data": 1.0}
    c.task.path = ConfigDict(path)


def edm(c: ConfigDict) -> None:
    """F is the network's own output, so plain squares are EDM's weighted ones."""
    variance_exploding(c, sigma_min=0.0)
    c.task.objective = ConfigDict({"type": "train.objectives.denoising:Denoising", "prediction": "F"})
    times(c, mean=-1.2 + UNIT, std=1.2)


def consistency(c: ConfigDict, **choices: object) -> None:
    """What consistency models share; ``choices`` are those of ``train.objectives.consistency``."""
    variance_exploding(c, sigma_min=0.004)
    c.task.objective = ConfigDict({"type": "train.objectives.consistency:Consistency", **choices})
    c.task.objective.steps = c.get_oneway_ref("steps")
    c.task.objective.time_mean, c.task.objective.time_std = -1.1 + UNIT, 2.0
    c.task.steps = 1
    c.model.time_scale = 100.0


def ict(c: ConfigDict) -> None:
    """No average among the targets, pseudo-Huber distances, more and more noise levels."""
    consistency(c, levels="ict", fewest=10, most=160, proposals="log_normal", weight="inverse", distance="pseudo_huber")
    c.ema.decays = (0.999,)


def ct(c: ConfigDict) -> None:
    """Targets from an average of the network, whose decay μ(k) = exp(s₀ ln μ₀ / N(k)) grows with the levels.

    N(k) grows like √k, so 1 − μ(k) falls like 1/√k: an average that warms up with power ½ has that decay, within 2 %
    from step 50 on.  It is evaluated with as well.
    """
    low, high, initial = 2, 150, 0.9
    consistency(c, levels="ct", fewest=low, most=high, proposals="uniform", weight="one", distance="l2")
    c.ema.decays = (0.9999,)
    steps: Any = c.steps
    c.ema.power, c.ema.inv_gamma = 0.5, (low * math.log(1 / initial) / (high + 1)) ** 2 * steps
    c.task.target = 0.9999


def cd(c: ConfigDict) -> None:
    """The teacher's Heun steps between 18 levels."""
    consistency(
        c, levels="fixed", fewest=18, most=18, proposals="uniform", weight="one", distance="l2", neighbour="teacher"
    )
    c.steps = 2500
    c.model.time_scale = 1000.0  # the teacher's
    c.ema.decays = (0.999, 0.95)
    c.task.target = 0.95


def scm(c: ConfigDict) -> None:
    """Denoising at first; the tangent comes in over the first half."""
    c.task.path = ConfigDict({"type": "sampling.paths:TrigFlow", "sigma_data": 1.0})
    c.task.objective = ConfigDict({"type": "train.objectives.scm:ContinuousConsistency"})
    c.task.objective.time_mean, c.task.objective.time_std = -1.0 + UNIT, 1.4
    c.task.objective.warmup = 2000
    c.task.objective.c = 0.1
    c.task.steps = 1
    c.model.time_scale = 10.0
    c.model.uncertainty = True
    c.ema.decays = (0.999,)


def mean_flow(c: ConfigDict) -> None:
    """A quarter of the rows learn averages, the others the velocity."""
    c.task.path = ConfigDict({"type": "sampling.paths:FlowPath", "data_time": 0.0})
    c.task.objective = ConfigDict({"type": "train.objectives.mean_flow:MeanFlow"})
    c.task.objective.apart = 0.25
    c.task.objective.time_mean, c.task.objective.time_std = -0.4, 1.0
    c.task.objective.power = 1.0
    c.task.steps = 1
    c.steps = 6000
    c.model.time_scale = 10.0
    c.ema.decays = (0.999,)


def shortcut(c: ConfigDict) -> None:
    """A quarter of the rows learn a step from two of half its length."""
    c.task.path = ConfigDict({"type": "sampling.paths:FlowPath", "data_time": 1.0})
    c.task.objective = ConfigDict({"type": "train.objectives.shortcut:Shortcut", "smallest": 128, "doubled": 0.25})
    c.task.steps = 1
    c.task.target = 0.999
    c.ema.decays = (0.999,)


def tiny(c: ConfigDict) -> None:
    """Compiles and runs in seconds."""
    flow(c)
    c.steps = 3
    c.optim.warmup_steps = 1
    c.model.dim, c.model.depth, c.model.heads = 16, 2, 2
    c.data.batch = 8
    c.log.every = 1
    c.evaluation.every = 0
    c.sample.every = 0
    c.checkpoint.every = 0
