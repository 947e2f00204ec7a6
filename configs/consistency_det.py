# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false
"""ConsistencyDet: boxes found in one step (Jiang et al. 2024, arXiv:2404.07773), as the theory has it and as released.

    python -m launch.run_train --config=configs/consistency_det.py:digits --workdir=runs/digits
    python -m launch.run_eval --workdir=runs/digits --table=steps --proposals=24

Variants, each also with `_released` behind it:
  digits      scenes of handwritten digits, minutes on two CPU cores; see docs/detection.md for what it reaches.
  coco_r50, coco_r101, coco_swin, lvis_r50, lvis_r101, lvis_swin
              the released networks; data as in configs/diffusion_det.py.  Published "best" AP of the released recipe,
              steps unstated: COCO 46.9, 47.2, 53.0; LVIS 32.2, 33.1, 42.4.  Its batch is 2; R50 takes 3.2M updates
              (rate / 10 after 0.9M and 2.8M), R101 6M from a DiffusionDet.
  tiny        seconds, for tests.

Plain, they train a consistency model: the answer at a noise level is drawn to that of an average of the network at the
next one, and at the least noise it is the input.  `_released` is the recipe of the release: two set losses at
neighbouring levels, nothing between them (with noise clamped to boxes and a time that is a function of the noise).
"""

from ml_collections import ConfigDict

from configs import diffusion_det

RELEASED = "_released"
PLAIN = diffusion_det.VARIANTS
UPDATES = {  # and after which of them the rate falls, where the release has its own
    f"coco_r50{RELEASED}": (3_200_000, (900_000, 2_800_000)),
    f"coco_r101{RELEASED}": (6_000_000, ()),
}
VARIANTS = (*PLAIN, *(name + RELEASED for name in PLAIN))


def get_config(variant: str = "digits") -> ConfigDict:
    """The locked config of one variant; raises ValueError for an unknown name."""
    if variant not in VARIANTS:
        raise ValueError(f"configs/consistency_det.py has no variant {variant!r}; choose one of {', '.join(VARIANTS)}")
    name = variant.removesuffix(RELEASED)
    c = diffusion_det.build(name, consistency if name == variant else released)
    if variant in UPDATES:
        c.steps, c.optim.milestones = UPDATES[variant]
    if variant.endswith(RELEASED) and name not in ("digits", "tiny"):
        c.data.batch, c.optim.warmup_steps = 2, 0
    return c.lock()


def path(c: ConfigDict) -> None:
    """Noise levels from 0.002 to 40 for boxes coded in [-1, 1]."""
    c.task.path = ConfigDict({"type": "sampling.box_paths:KarrasBoxes"})
    c.task.path.sigma_min = 0.002
    c.task.path.sigma_max = 40.0
    c.task.path.sigma_data = 0.5
    c.task.path.rho = 7.0
    c.task.path.boundary = 0.0
    c.task.path.time = "log"
    c.task.path.trained = 40
    c.task.path.solver = "renoise"
    c.task.path.clamp = True
    c.task.path.clip = False


def consistency(c: ConfigDict) -> None:
    """Levels as in iCT, doubled until there are 80; targets from an average of the network."""
    path(c)
    c.task.path.boundary = 0.02
    c.task.objective = ConfigDict({"type": "train.objectives.box_consistency:BoxConsistency"})
    c.task.objective.steps = c.get_oneway_ref("steps")
    c.task.objective.levels = "ict"
    c.task.objective.fewest = 10
    c.task.objective.most = 80
    c.task.objective.proposals = "uniform"
    c.task.objective.coefficient = 1.0
    c.task.objective.weight = "one"
    c.task.target = c.ema.decays[0]


def released(c: ConfigDict) -> None:
    """Forty levels, and where the release's weights depend on it, its ways: Euler steps, answers cut at the borders."""
    path(c)
    c.task.path.time = "level"
    c.task.path.solver = "euler"
    c.task.path.clip = True
    c.task.renewal = 0.9
    c.task.objective = ConfigDict({"type": "train.objectives.box_consistency:TwoLevels"})
