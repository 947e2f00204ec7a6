"""Keys that every run has.  A family's own keys are born in its own file, which starts from ``base()``.

Configs are plain Python that returns a locked ``ConfigDict``: a misspelt key or a wrong type on the command line is an
error at once.  Components are named by ``"module:Class"`` strings; the other keys of their section are that class's
constructor arguments, so there is no registry to edit.
"""

from ml_collections import ConfigDict


def base() -> ConfigDict:
    """Defaults of every run, unlocked; ``get_config`` of a family fills in the sections and locks it."""
    c = ConfigDict()
    c.seed = 0
    c.steps = 1000  # optimiser updates in the whole run

    # What is trained, on what; each family fills these in.
    c.task = ConfigDict({"type": ""})
    c.model = ConfigDict({"type": ""})
    c.data = ConfigDict({"type": ""})

    # Optimiser: `optimizer` is adamw | muon | sgd.  `groups` names parameter groups: each has `match` (path regex) and
    # may override any of the keys below; groups must not overlap, what none of them matches uses the keys here.
    c.optim = ConfigDict()
    c.optim.optimizer = "adamw"
    c.optim.lr = 1e-3
    c.optim.b1 = 0.9
    c.optim.b2 = 0.999
    c.optim.eps = 1e-8
    c.optim.momentum = 0.95  # of muon and sgd
    c.optim.muon_scale = "rms"  # rms | shape, see train/muon.py
    c.optim.muon_lr_ratio = 1.0  # learning rate of Muon's matrices / lr
    c.optim.weight_decay = 0.0
    c.optim.decay_match = ".*"  # parameters that decay
    c.optim.clip_norm = 1.0  # global norm; 0 = off
    c.optim.schedule = "cosine"  # constant | linear | cosine, after the warm-up, over `steps`
    c.optim.warmup_steps = 0
    c.optim.init_lr_ratio = 1e-8  # lr of the first update / peak, with a warm-up
    c.optim.final_lr_ratio = 0.0  # lr at update number `steps` / peak
    c.optim.groups = ConfigDict()

    # Averages of the parameters, one copy per decay.  Samples and evaluation use the first.
    c.ema = ConfigDict()
    c.ema.decays = (0.999,)
    c.ema.update_after_step = 0
    c.ema.update_every = 1
    c.ema.power = 2.0 / 3.0  # warm-up 1 - (1 + n / inv_gamma) ** -power
    c.ema.inv_gamma = 1.0

    # Low-rank adaptation of what --init_from names, see train/lora.py; rank 0 = everything is trained.
    c.lora = ConfigDict()
    c.lora.rank = 0
    c.lora.alpha = 16.0  # the update is multiplied by alpha / rank
    c.lora.match = ".*/kernel"  # path regex of the kernels that get an update
    c.lora.train = ""  # path regex of parameters that are trained whole beside them

    c.precision = ConfigDict()
    c.precision.compute = "float32"  # float32 | bfloat16 | float16 (with loss scaling)
    c.accumulate = 1  # microbatches per update
    c.skip_nonfinite = True  # a step with non-finite gradients changes nothing and is counted
    c.max_skipped = 10  # that many skipped steps in a row abort the run (exit code 86)

    # Device mesh: sizes of the four axes, -1 = what is left.
    c.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1, "sequence": 1})

    # Intervals are in updates; 0 = never.
    c.log = ConfigDict({"every": 10, "tensorboard": False})
    c.evaluation = ConfigDict({"every": 500, "batches": 0, "params": "ema"})  # batches 0 = all; params: ema | raw
    c.sample = ConfigDict({"every": 0})
    c.checkpoint = ConfigDict()
    c.checkpoint.every = 500
    c.checkpoint.keep_latest = 2
    c.checkpoint.keep_every = 0  # keep these for ever
    c.checkpoint.keep_best = 0  # this many by `best_metric`
    c.checkpoint.best_metric = ""  # an evaluation metric; "-" in front = larger is better
    c.profile = ConfigDict({"start": 0, "steps": 0})  # trace window; also started by touching <workdir>/PROFILE
    c.compile_cache = True  # persistent XLA cache, in $JAX_COMPILATION_CACHE_DIR or the user's cache folder
    return c
