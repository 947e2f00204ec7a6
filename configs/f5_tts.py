# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false
"""F5-TTS: flow-matching speech with a DiT (Chen et al. 2024, arXiv:2410.06885).

    python -m launch.run_train --config=configs/f5_tts.py:demo --workdir=runs/demo

Variants:
  demo     ten spoken digits, a small DiT trained in minutes on two CPU cores; what `make demo` runs.
  spoken   the same corpus, larger and longer; see the README for its curve and error rate.
  tiny     seconds, for tests and `launch.doctor`.
  v1_small the released F5TTS_v1_Small: 159 M parameters, LibriTTS (585 h), 8 GPUs.
  v1_base  the released F5TTS_v1_Base: 337 M parameters, Emilia (95k h), 8 A100-80G for over a week.
           Published (v0): LibriSpeech-PC test-clean WER 2.42 %, SIM 0.66 at 32 steps (2.53 %, 0.66 at 16);
           Seed-TTS en 1.83 %, 0.67; zh 1.56 %, 0.76.  Intelligible after 200-400k updates.
  v0_small, v0_base   the same sizes with the options of the first release (RoPE on one head, filler text unmasked).
  mmdit    text as a stream of its own (MMDiT), the size of v1_small; nobody has published such weights.
  finetune a converted checkpoint, or any run, all of it trained; network, task, vocabulary and mel are its own:
           python -m launch.run_train --config=configs/f5_tts.py:finetune --init_from=DIR --workdir=runs/mine \\
               --config.data.dir=my_speech
  lora     the same with the base frozen and updates of rank 16 to the matrices of its blocks.

The names of the released sizes are what `launch.run_convert` takes: nothing in a file tells v0 from v1.
"""

from ml_collections import ConfigDict, config_dict

from configs.base import base

VARIANTS = ("demo", "spoken", "tiny", "v1_small", "v1_base", "v0_small", "v0_base", "mmdit")
FINETUNE = ("finetune", "lora")  # complete only with what --init_from names


def get_config(variant: str = "demo") -> ConfigDict:
    """The locked config of one variant; raises ValueError for an unknown name."""
    if variant not in VARIANTS + FINETUNE:
        known = ", ".join(VARIANTS + FINETUNE)
        raise ValueError(f"configs/f5_tts.py has no variant {variant!r}; choose one of {known}")
    c = base()
    speech(c)
    dit(c)
    {"demo": demo, "spoken": spoken, "tiny": tiny, "v1_small": small, "v1_base": base_size,
     "v0_small": small, "v0_base": base_size, "mmdit": mmdit,
     "finetune": finetune, "lora": lora}[variant](c)  # fmt: skip
    if variant.startswith("v0_"):
        c.model.text_mask_padding = False
        c.model.pe_attn_head = 1
    return c.lock()


def speech(c: ConfigDict) -> None:
    """Task and data of every network of this family, at the values of the released v1 models."""
    c.task = ConfigDict()
    c.task.type = "train.tasks.speech:SpeechTask"
    c.task.normalise = False  # of the log-mel to mean 0, deviation 1; the releases do not
    c.task.prediction = "velocity"  # what the network outputs: velocity | data
    c.task.max_weight = 20.0  # bound of the weight 1 / (1 - t) of a "data" prediction's error
    c.task.time = "uniform"  # uniform | release | logit_normal
    c.task.time_mean = 0.0
    c.task.time_std = 1.0
    c.task.span = (0.7, 1.0)  # share of the clip that is hidden
    c.task.drop_audio = 0.3
    c.task.drop_both = 0.2
    c.task.drop_per = "sample"  # sample | batch; the release decides once per batch
    c.task.steps = 16  # of samples made while training
    c.task.cfg_strength = 2.0
    c.task.sway = -1.0
    c.task.duration_weight = 0.0  # of a duration predictor's loss; 0 = none is trained

    c.data = ConfigDict()
    c.data.type = "data.speech:SpeechData"
    c.data.dir = ""  # folder with metadata.csv and wavs/, or a manifest of audio|text lines; "" = the shipped corpus
    c.data.tokenizer = "char"  # char | vocab | pinyin | byte
    c.data.vocab = ""
    c.data.min_seconds = 0.3
    c.data.max_seconds = 30.0
    c.data.frames_per_batch = 307_200
    c.data.max_batch = 512
    c.data.buckets = 8
    c.data.eval_fraction = 0.002
    c.data.on_bad = "skip"  # error | skip: what an unusable utterance is
    c.data.pairs = False
    c.data.pair_seconds = 0.0
    c.data.mel = ConfigDict(
        {"kind": "vocos", "sample_rate": 24_000, "n_fft": 1024, "hop": 256, "win": 1024, "n_mels": 100}
    )


def dit(c: ConfigDict) -> None:
    """The network of the released F5-TTS, at the size of v1_base."""
    c.model = ConfigDict()
    c.model.type = "models.dit:DiT"
    c.model.dim = 1024
    c.model.depth = 22
    c.model.heads = 16
    c.model.dim_head = 64
    c.model.ff_mult = 2.0
    c.model.text_dim = 512
    c.model.conv_layers = 4
    c.model.text_mask_padding = True
    c.model.text_average_upsampling = False
    c.model.qk_norm = config_dict.placeholder(str)  # None | rms_norm
    c.model.pe_attn_head = config_dict.placeholder(int)  # rotary positions on the first heads only; None = all
    c.model.long_skip_connection = False
    c.model.dropout = 0.1
    c.model.padding = "exact"  # exact | reference, see models/dit.py
    c.model.conv_pos_kernel = 31
    c.model.conv_pos_groups = 16
    c.model.remat = "none"
    c.model.scan_layers = True
    c.model.attn_impl = "auto"


def released(c: ConfigDict) -> None:
    """Optimisation of the released models."""
    c.steps = 1_250_000
    c.optim.lr = 7.5e-5
    c.optim.weight_decay = 0.01
    c.optim.schedule = "linear"
    c.optim.warmup_steps = 20_000
    c.optim.final_lr_ratio = 1e-8
    c.ema.decays = (0.9999,)
    c.ema.update_after_step = 100
    c.ema.update_every = 10
    c.precision.compute = "bfloat16"
    c.model.remat = "dots"
    c.mesh.data, c.mesh.fsdp = 1, -1
    c.data.tokenizer = "pinyin"
    c.checkpoint.every = 10_000
    c.checkpoint.keep_every = 100_000
    c.evaluation.every = 10_000
    c.sample.every = 10_000
    c.log.every = 50


def base_size(c: ConfigDict) -> None:
    """F5TTS_v1_Base; for training `config.data.dir` and `config.data.vocab` (the released vocab.txt) must be given."""
    released(c)


def small(c: ConfigDict) -> None:
    """F5TTS_v1_Small on LibriTTS, characters."""
    released(c)
    c.model.dim, c.model.depth, c.model.heads = 768, 18, 12
    c.data.tokenizer = "char"
    c.data.max_batch = 256


def mmdit(c: ConfigDict) -> None:
    """10 joint blocks; each has the parameters of two of the DiT's."""
    small(c)
    c.model.type = "models.mmdit:MMDiT"
    c.model.depth = 10
    for key in ("text_dim", "conv_layers", "text_average_upsampling", "pe_attn_head", "long_skip_connection"):
        delattr(c.model, key)


def finetune(c: ConfigDict) -> None:
    """What --init_from names goes on with other data; one GPU.

    The average begins as the checkpoint's and warms up (after n steps half of it is of the last 0.7 n^(2/3)), so
    that an early save sounds neither untrained nor like the base.  `evaluation` is the loss at fixed times, also at
    step 0.
    """
    released(c)
    c.steps = 10_000
    c.task = ConfigDict({"type": "kept"})
    c.model = ConfigDict({"type": "kept"})
    c.task.duration_weight = config_dict.placeholder(float)  # None = the checkpoint's
    c.model.dropout = config_dict.placeholder(float)
    c.model.remat = config_dict.placeholder(str)
    c.data.tokenizer = "kept"
    del c.data.mel
    c.data.frames_per_batch = 38_400
    c.data.max_batch = 64
    c.data.eval_fraction = 0.02
    c.optim.lr = 1e-5
    c.optim.warmup_steps = 200
    c.ema.decays = (0.999,)
    c.ema.update_after_step = 0
    c.ema.update_every = 1
    c.checkpoint.every = 1000
    c.checkpoint.keep_every = 0
    c.evaluation.every = 500
    c.sample.every = 1000
    c.log.every = 10


def lora(c: ConfigDict) -> None:
    """Attention and feed-forward of every backbone's blocks; a hundredth of the optimiser's memory."""
    finetune(c)
    c.optim.lr = 2e-4
    c.optim.weight_decay = 0.0
    c.lora.rank = 16
    c.lora.match = r"(blocks|early|late|last)/(.*/)?(q|k|v|out|up|down)/kernel"


def cpu(c: ConfigDict) -> None:
    """What the small runs on the shipped corpus share."""
    c.model.text_average_upsampling = True
    c.model.dropout = 0.0
    c.task.normalise = True
    c.task.prediction = "data"
    c.task.time = "logit_normal"
    c.task.time_mean, c.task.time_std = -0.4, 1.0
    c.task.span = (0.5, 1.0)
    c.task.drop_audio = 0.1
    c.data.pairs = True
    c.data.on_bad = "error"
    c.data.buckets = 1
    c.optim.b2 = 0.99
    c.optim.schedule = "linear"
    c.optim.warmup_steps = 30
    c.optim.lr = 2e-3
    # Muon on the matrices of the blocks; Adam's learning rate does not fit it.
    c.optim.groups.blocks = ConfigDict(
        {"match": r"blocks/(attn/(q|k|v|out)|up|down)/kernel", "optimizer": "muon", "lr": 0.02, "muon_scale": "shape"}
    )
    c.ema.decays = (0.995,)


def demo(c: ConfigDict) -> None:
    """1.4 M parameters; the numbers it reaches stand in the README."""
    cpu(c)
    c.steps = 1000
    c.model.dim, c.model.depth, c.model.heads, c.model.ff_mult = 128, 4, 2, 4.0
    c.model.text_dim, c.model.conv_layers = 64, 2
    c.model.conv_pos_groups = 128
    c.data.frames_per_batch = 1824
    c.data.max_batch = 6
    c.data.pair_seconds = 3.2
    c.log.every = 10
    c.evaluation.every = 500
    c.sample.every = 500
    c.checkpoint.every = 500


def spoken(c: ConfigDict) -> None:
    """3 M parameters and more steps; its curve and error rate stand in the README."""
    demo(c)
    c.steps = 3000
    c.model.dim, c.model.heads = 192, 3
    c.model.text_dim = 96
    c.model.conv_pos_groups = 192
    c.ema.decays = (0.998,)
    c.evaluation.every = 500
    c.sample.every = 1000


def tiny(c: ConfigDict) -> None:
    """Compiles and runs in seconds."""
    cpu(c)
    c.steps = 3
    c.optim.warmup_steps = 1
    c.model.dim, c.model.depth, c.model.heads, c.model.dim_head, c.model.ff_mult = 32, 2, 2, 16, 2.0
    c.model.text_dim, c.model.conv_layers = 16, 1
    c.model.conv_pos_groups = 32
    c.data.frames_per_batch = 912
    c.data.max_batch = 2
    c.data.pair_seconds = 3.2
    c.log.every = 1
    c.evaluation.every = 0
    c.checkpoint.every = 0
