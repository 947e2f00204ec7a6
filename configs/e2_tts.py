# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false
"""E2-TTS: flow-matching speech with a flat U-Net transformer (Eskimez et al. 2024, arXiv:2406.18009).

    python -m launch.run_convert --config=configs/e2_tts.py:base --checkpoint=model_1200000.safetensors --out=DIR

Variants:
  base    the released E2TTS_Base: 333 M parameters, Emilia (95k h).  Published by the authors of F5-TTS, midpoint
          solver: LibriSpeech-PC test-clean WER 2.95 %, SIM 0.69; Seed-TTS en 2.19 %, 0.71; zh 1.97 %, 0.73.  Twice the
          arithmetic of F5-TTS at the same length.
  small   the released E2TTS_Small's size: 157 M parameters.
  tiny    seconds, for tests.
"""

from ml_collections import ConfigDict, config_dict

from configs.base import base
from configs.f5_tts import released, speech

VARIANTS = ("base", "small", "tiny")


def get_config(variant: str = "base") -> ConfigDict:
    """The locked config of one variant; raises ValueError for an unknown name."""
    if variant not in VARIANTS:
        raise ValueError(f"configs/e2_tts.py has no variant {variant!r}; choose one of {', '.join(VARIANTS)}")
    c = base()
    speech(c)
    unett(c)
    {"base": released, "small": small, "tiny": tiny}[variant](c)
    return c.lock()


def unett(c: ConfigDict) -> None:
    """The network of the released E2-TTS, at the size of base."""
    c.model = ConfigDict()
    c.model.type = "models.unett:UNetT"
    c.model.dim = 1024
    c.model.depth = 24
    c.model.heads = 16
    c.model.dim_head = 64
    c.model.ff_mult = 4.0
    c.model.text_dim = config_dict.placeholder(int)  # None = the number of mel bins
    c.model.conv_layers = 0
    c.model.text_mask_padding = False
    c.model.skip_connect_type = "concat"  # concat | add | none
    c.model.qk_norm = config_dict.placeholder(str)  # None | rms_norm
    c.model.pe_attn_head = 1  # rotary positions on the first heads only; None = all
    c.model.dropout = 0.1
    c.model.padding = "exact"  # exact | reference, see models/unett.py
    c.model.conv_pos_kernel = 31
    c.model.conv_pos_groups = 16
    c.model.remat = "none"
    c.model.scan_layers = True
    c.model.attn_impl = "auto"


def small(c: ConfigDict) -> None:
    """E2TTS_Small."""
    released(c)
    c.model.dim, c.model.depth, c.model.heads = 768, 20, 12


def tiny(c: ConfigDict) -> None:
    """Compiles and runs in seconds."""
    c.steps = 3
    c.model.dim, c.model.depth, c.model.heads, c.model.dim_head, c.model.ff_mult = 32, 2, 2, 16, 2.0
    c.model.conv_pos_groups = 32
    c.data.pairs = True
    c.data.pair_seconds = 3.2
    c.data.on_bad = "error"
    c.data.buckets = 1
    c.data.frames_per_batch = 912
    c.data.max_batch = 2
    c.log.every = 1
    c.evaluation.every = 0
    c.checkpoint.every = 0
