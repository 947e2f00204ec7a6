# pyright: reportMissingImports=false
"""A yardstick: the F5-TTS DiT in plain PyTorch, for one unpadded row or a batch without padding.

Own code, written from the paper and our specification, with the official parameter names, so that the file our
converter writes loads with ``load_state_dict``.  It uses PyTorch's fused ``scaled_dot_product_attention`` and caches
the text encoding over the sampling steps, as a careful PyTorch user would.
"""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn


class TimeEmbedding(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.time_mlp = nn.Sequential(nn.Linear(256, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, time):  # [b] -> [b, d]
        frequency = torch.exp(-math.log(10000) / 127 * torch.arange(128, dtype=torch.float32))
        phase = 1000 * time[:, None] * frequency
        return self.time_mlp(torch.cat([phase.sin(), phase.cos()], -1))


class GRN(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, dim))
        self.beta = nn.Parameter(torch.zeros(1, 1, dim))

    def forward(self, x):
        g = x.norm(p=2, dim=1, keepdim=True)
        return self.gamma * (x * (g / (g.mean(-1, keepdim=True) + 1e-6))) + self.beta + x


class TextBlock(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.dwconv = nn.Conv1d(dim, dim, 7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1 = nn.Linear(dim, 2 * dim)
        self.grn = GRN(2 * dim)
        self.pwconv2 = nn.Linear(2 * dim, dim)

    def forward(self, x):
        h = self.norm(self.dwconv(x.mT).mT)
        return x + self.pwconv2(self.grn(F.gelu(self.pwconv1(h))))


class TextEmbedding(nn.Module):
    def __init__(self, vocab: int, dim: int, layers: int):
        super().__init__()
        self.text_embed = nn.Embedding(vocab + 1, dim)
        self.text_blocks = nn.Sequential(*(TextBlock(dim) for _ in range(layers)))
        self.dim = dim

    def forward(self, text, frames: int, drop: bool = False):  # [b, n] -> [b, frames, d]
        ids = F.pad(text[:, :frames] + 1, (0, max(0, frames - text.shape[1])))
        mask = (ids == 0)[..., None]
        x = self.text_embed(torch.zeros_like(ids) if drop else ids)
        frequency = 10000 ** (-torch.arange(0, self.dim, 2, dtype=torch.float32) / self.dim)
        phase = torch.arange(frames, dtype=torch.float32)[:, None] * frequency
        x = (x + torch.cat([phase.cos(), phase.sin()], -1)).masked_fill(mask, 0.0)
        for block in self.text_blocks:
            x = block(x).masked_fill(mask, 0.0)
        return x


class ConvPositionEmbedding(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        conv = [nn.Conv1d(dim, dim, 31, padding=15, groups=16) for _ in range(2)]
        self.conv1d = nn.Sequential(conv[0], nn.Mish(), conv[1], nn.Mish())

    def forward(self, x):
        return self.conv1d(x.mT).mT


class InputEmbedding(nn.Module):
    def __init__(self, mel: int, text: int, dim: int):
        super().__init__()
        self.proj = nn.Linear(2 * mel + text, dim)
        self.conv_pos_embed = ConvPositionEmbedding(dim)

    def forward(self, x, cond, text):
        h = self.proj(torch.cat([x, cond, text], -1))
        return h + self.conv_pos_embed(h)


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int, dim_head: int):
        super().__init__()
        self.heads = heads
        inner = heads * dim_head
        self.to_q, self.to_k, self.to_v = (nn.Linear(dim, inner) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(inner, dim)])

    def forward(self, x, rope):
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.to_q, self.to_k, self.to_v))
        out = F.scaled_dot_product_attention(rotate(q, *rope), rotate(k, *rope), v)
        return self.to_out[0](out.transpose(1, 2).flatten(-2))


def rotate(x, cos, sin):
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], -1).flatten(-2)


class AdaNorm(nn.Module):
    def __init__(self, dim: int, chunks: int):
        super().__init__()
        self.linear = nn.Linear(dim, chunks * dim)
        self.norm = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.chunks = chunks

    def forward(self, t):
        return self.linear(F.silu(t))[:, None].chunk(self.chunks, -1)


class FeedForward(nn.Module):
    def __init__(self, dim: int, mult: float):
        super().__init__()
        self.ff = nn.Sequential(
            nn.Sequential(nn.Linear(dim, int(dim * mult)), nn.GELU(approximate="tanh")),
            nn.Identity(),
            nn.Linear(int(dim * mult), dim),
        )

    def forward(self, x):
        return self.ff(x)


class Block(nn.Module):
    def __init__(self, dim: int, heads: int, dim_head: int, ff_mult: float):
        super().__init__()
        self.attn_norm = AdaNorm(dim, 6)
        self.attn = Attention(dim, heads, dim_head)
        self.ff = FeedForward(dim, ff_mult)

    def forward(self, x, t, rope):
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.attn_norm(t)
        norm = self.attn_norm.norm
        x = x + gate_a * self.attn(norm(x) * (1 + scale_a) + shift_a, rope)
        return x + gate_m * self.ff(norm(x) * (1 + scale_m) + shift_m)


class TorchDiT(nn.Module):
    """F5-TTS v1: every head rotated, filler text masked, no attention mask (rows must not be padded)."""

    def __init__(self, *, dim, depth, heads, ff_mult, text_dim, conv_layers, text_num_embeds, mel_dim=100, dim_head=64):
        super().__init__()
        self.time_embed = TimeEmbedding(dim)
        self.text_embed = TextEmbedding(text_num_embeds, text_dim, conv_layers)
        self.input_embed = InputEmbedding(mel_dim, text_dim, dim)
        self.transformer_blocks = nn.ModuleList(Block(dim, heads, dim_head, ff_mult) for _ in range(depth))
        self.norm_out = AdaNorm(dim, 2)
        self.proj_out = nn.Linear(dim, mel_dim)
        self.dim_head = dim_head

    def encode_text(self, text, frames, drop=False):
        return self.text_embed(text, frames, drop)

    def velocity(self, x, cond, text_emb, time):
        t = self.time_embed(time)
        h = self.input_embed(x, cond, text_emb)
        inverse = 10000 ** (-torch.arange(0, self.dim_head, 2, dtype=torch.float32) / self.dim_head)
        phase = torch.arange(x.shape[1], dtype=torch.float32)[:, None] * inverse
        rope = (phase.cos(), phase.sin())
        for block in self.transformer_blocks:
            h = block(h, t, rope)
        scale, shift = self.norm_out(t)
        return self.proj_out(self.norm_out.norm(h) * (1 + scale) + shift)

    def forward(self, x, cond, text, time):
        return self.velocity(x, cond, self.encode_text(text, x.shape[1]), time)

    @torch.no_grad()
    def sample(self, noise, cond, text, times, cfg_strength):
        """Euler over ``times`` with guidance, both halves in one call; the text is encoded once."""
        frames = noise.shape[1]
        text_emb = torch.cat([self.encode_text(text, frames), self.encode_text(text, frames, drop=True)])
        both = torch.cat([cond, torch.zeros_like(cond)])
        x = noise
        for start, stop in pairwise(times):
            prediction, null = self.velocity(torch.cat([x, x]), both, text_emb, start.expand(2 * len(x))).chunk(2)
            x = x + (stop - start) * (prediction + cfg_strength * (prediction - null))
        return x
