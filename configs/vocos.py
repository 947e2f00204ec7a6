# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false
"""Vocoders: Vocos (Siuzdak 2023, arXiv:2306.00814) and BigVGAN v2 (Lee et al. 2023, arXiv:2206.04658).

    python -m launch.run_train --config=configs/vocos.py:demo --workdir=runs/vocos
    python -m launch.run_convert --config=configs/vocos.py:mel_24khz --checkpoint=pytorch_model.bin --out=runs/vocos

Variants:
  mel_24khz   the released charactr/vocos-mel-24khz: 13,531,650 parameters (published: 13.5 M), LibriTTS, a million
              updates of 16 crops of 16,384 samples, mel distance x 45, resolutions x 0.1, lr 5e-4.
  bigvgan_v2  the released nvidia/bigvgan_v2_24khz_100band_256x, 112,414,512 parameters, for conversion.
  demo        1.7 M parameters on the shipped corpus, on a CPU; this length of it has not been run yet.
  tiny        seconds, for tests.
"""

from ml_collections import ConfigDict

from configs.base import base

VARIANTS = ("mel_24khz", "bigvgan_v2", "demo", "tiny")


def get_config(variant: str = "demo") -> ConfigDict:
    """The locked config of one variant; raises ValueError for an unknown name."""
    if variant not in VARIANTS:
        raise ValueError(f"configs/vocos.py has no variant {variant!r}; choose one of {', '.join(VARIANTS)}")
    c = base()
    vocoder(c)
    {"mel_24khz": mel_24khz, "bigvgan_v2": bigvgan_v2, "demo": demo, "tiny": tiny}[variant](c)
    return c.lock()


def vocoder(c: ConfigDict) -> None:
    """The keys that every variant of this family has."""
    c.task = ConfigDict()
    c.task.type = "train.tasks.vocoder:VocoderTask"
    c.task.mel_weight = 45.0
    c.task.stft_weight = 0.0  # of the multi-resolution STFT distance; the release has none
    c.task.adversarial_from = 0  # first step with discriminators; -1 = never
    c.task.match_weight = 1.0
    c.task.resolution_weight = 0.1
    c.task.periods = (2, 3, 5, 7, 11)
    c.task.period_channels = (32, 128, 512, 1024, 1024)
    c.task.resolutions = (2048, 1024, 512)
    c.task.resolution_channels = 32

    c.model = ConfigDict()
    c.model.type = "models.vocoders.vocos:Vocos"

    c.data = ConfigDict()
    c.data.type = "data.vocoder:VocoderData"
    c.data.dir = ""  # folder with metadata.csv and wavs/, or a manifest; "" = the shipped corpus
    c.data.samples = 16_384
    c.data.batch = 16
    c.data.peak_db = ()  # range of the crops' peaks, dB below full scale; () = as recorded
    c.data.min_seconds = 0.3
    c.data.max_seconds = 30.0
    c.data.eval_fraction = 0.002
    c.data.on_bad = "skip"
    c.data.mel = ConfigDict(
        {"kind": "vocos", "sample_rate": 24_000, "n_fft": 1024, "hop": 256, "win": 1024, "n_mels": 100}
    )


def mel_24khz(c: ConfigDict) -> None:
    """The released sizes; `config.data.dir` must be given to train."""
    vocos(c, dim=512, hidden=1536, depth=8)
    c.steps = 1_000_000
    c.data.peak_db = (-6.0, -1.0)
    c.optim.lr = 5e-4
    c.optim.b1, c.optim.b2 = 0.8, 0.9
    c.optim.weight_decay = 0.01
    c.optim.clip_norm = 0.0
    adversary(c, lr=5e-4)
    c.ema.decays = (0.9999,)
    c.ema.update_every = 10
    c.checkpoint.every = 10_000
    c.checkpoint.keep_every = 100_000
    c.evaluation.every = 10_000
    c.sample.every = 10_000
    c.log.every = 50


def bigvgan_v2(c: ConfigDict) -> None:
    """The released sizes; the mel is another one (`data.mel.kind`)."""
    c.model = ConfigDict()
    c.model.type = "models.vocoders.bigvgan:BigVGAN"
    c.model.channels = 1536
    c.model.rates = (4, 4, 2, 2, 2, 2)
    c.model.rate_widths = (8, 8, 4, 4, 4, 4)
    c.model.widths = (3, 7, 11)
    c.model.dilations = (1, 3, 5)
    c.data.mel.kind = "bigvgan"
    c.task.adversarial_from = -1


def vocos(c: ConfigDict, dim: int, hidden: int, depth: int) -> None:
    """Sizes of the network."""
    c.model.dim, c.model.hidden, c.model.depth = dim, hidden, depth
    c.model.padding = "center"  # center for mels of kind vocos | same for kind bigvgan
    c.model.remat = "none"
    c.model.scan_layers = True


def adversary(c: ConfigDict, lr: float) -> None:
    """The discriminators' own optimiser and clip."""
    group = {"match": "discriminators/.*", "lr": lr, "clip_norm": c.optim.clip_norm}
    c.optim.groups.discriminators = ConfigDict(group)


def demo(c: ConfigDict) -> None:
    """Reconstruction first, then small discriminators for the last eighth; not yet run to its end as it stands.

    A run of 2700 steps with discriminators from 2400, stopped at 2451 after 10 core-minutes, was measured on the first
    32 held-out sentences beside Griffin-Lim: word errors 0.040 [0.014, 0.072] to 0.013 [0.000, 0.033] (recordings
    0.027), no difference within the intervals; STFT distance 0.64 to 0.45 and log-spectral distance 5.5 to 4.4 dB, a
    loss; 3.1 M samples per CPU second to 0.26 M.
    """
    vocos(c, dim=192, hidden=576, depth=6)
    c.steps = 2400
    c.data.samples, c.data.batch = 8192, 12
    c.data.on_bad = "error"
    c.task.stft_weight = 10.0
    c.task.adversarial_from = 2100
    c.task.periods, c.task.period_channels = (2, 3, 5), (8, 16, 32, 64)
    c.task.resolutions, c.task.resolution_channels = (512,), 4
    c.optim.lr = 1e-3
    c.optim.b1, c.optim.b2 = 0.8, 0.95
    c.optim.weight_decay = 0.01
    c.optim.warmup_steps = 50
    c.optim.final_lr_ratio = 0.1  # the discriminators come late and still have to learn
    adversary(c, lr=1e-3)
    c.ema.decays = (0.995,)
    c.log.every = 20
    c.evaluation.every = 500
    c.checkpoint.every = 500


def tiny(c: ConfigDict) -> None:
    """Compiles and runs in seconds."""
    demo(c)
    vocos(c, dim=16, hidden=32, depth=2)
    c.steps = 3
    c.data.samples, c.data.batch = 2048, 2
    c.task.adversarial_from = 1
    c.task.periods, c.task.period_channels = (2,), (4, 4)
    c.task.resolutions, c.task.resolution_channels = (512,), 2
    c.optim.warmup_steps = 1
    c.log.every = 1
    c.evaluation.every = 0
    c.checkpoint.every = 0
