"""A stack of decoder-only transformers of one shape, as one program.

    S models in the stack, B sequences, L positions, D width, H heads, N = B * L,
    V vocabulary

Every parameter has a leading S axis and model s only ever meets its own slice, so a
model's result does not depend on its neighbors beyond the rounding of batched sums.
Pre-norm RMSNorm, rotary positions, grouped-query attention, SwiGLU feed-forward
(routed experts plus a shared one, or dense), tied embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import ProxyConfig
from .moe import DenseFeedForward, MoeFeedForward

_ROPE_BASE = 10_000.0


class StackedNorm(nn.Module):
    """RMSNorm with a gain per model."""

    def __init__(self, num_models: int, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(num_models, width))

    def forward(self, x_SND: Tensor) -> Tensor:
        """Return (S, N, D) normalized activations."""
        return F.rms_norm(x_SND, (x_SND.shape[-1],), eps=1e-6) * self.gain.unsqueeze(1)


class StackedAttention(nn.Module):
    """Causal grouped-query attention with rotary positions."""

    def __init__(self, num_models: int, config: ProxyConfig) -> None:
        super().__init__()
        self.config = config
        heads = config.num_heads + 2 * config.kv_heads
        self.qkv = nn.Parameter(torch.empty(num_models, config.width, heads * config.head_dim))
        self.out = nn.Parameter(torch.empty(num_models, config.width, config.width))

    def forward(self, x_SND: Tensor, batch: int, rotation: tuple[Tensor, Tensor]) -> Tensor:
        """Return (S, N, D) outputs; sequences are the `batch` equal parts of N."""
        c, (num_models, num_tokens, _) = self.config, x_SND.shape
        length = num_tokens // batch
        qkv = torch.bmm(x_SND, self.qkv).view(num_models * batch, length, -1, c.head_dim).transpose(1, 2)
        q, k, v = qkv.split([c.num_heads, c.kv_heads, c.kv_heads], dim=1)
        q, k = _rotate(q, rotation), _rotate(k, rotation)
        repeat = c.num_heads // c.kv_heads
        if repeat > 1:
            k, v = k.repeat_interleave(repeat, dim=1), v.repeat_interleave(repeat, dim=1)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return torch.bmm(mixed.transpose(1, 2).reshape(num_models, num_tokens, c.width), self.out)


class Block(nn.Module):
    """Attention and feed-forward, each with its norm and residual."""

    def __init__(self, num_models: int, config: ProxyConfig) -> None:
        super().__init__()
        self.norm1 = StackedNorm(num_models, config.width)
        self.attention = StackedAttention(num_models, config)
        self.norm2 = StackedNorm(num_models, config.width)
        if config.router == "dense":
            self.shared = DenseFeedForward(num_models, config.width, config.active_ffn_width)
            self.moe = None
        else:
            self.shared = DenseFeedForward(num_models, config.width, config.shared_width)
            self.moe = MoeFeedForward(
                num_models, config.width, config.expert_width, experts=config.experts, top_k=config.top_k
            )

    def forward(self, x_SND: Tensor, batch: int, rotation: tuple[Tensor, Tensor]) -> Tensor:
        """Return (S, N, D) activations."""
        x_SND = x_SND + self.attention(self.norm1(x_SND), batch, rotation)
        y_SND = self.norm2(x_SND)
        out = self.shared(y_SND)
        if self.moe is not None:
            out = out + self.moe(y_SND)
        return torch.add(x_SND, out)


class ProxyStack(nn.Module):
    """S proxies of one shape.

    Args:
        config: Their common shape.
        num_models: S.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, config: ProxyConfig, num_models: int) -> None:
        super().__init__()
        self.config = config
        self.num_models = num_models
        self.embedding = nn.Parameter(torch.empty(num_models, config.vocab_size, config.width))
        self.blocks = nn.ModuleList(Block(num_models, config) for _ in range(config.depth))
        self.norm = StackedNorm(num_models, config.width)
        angle = torch.outer(
            torch.arange(config.sequence_length).float(),
            _ROPE_BASE ** (-torch.arange(0, config.head_dim, 2).float() / config.head_dim),
        )
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    @torch.no_grad()
    def initialize(self, generators: Sequence[torch.Generator]) -> ProxyStack:
        """Draw each model's weights from its own generator, on the CPU.

        Matrices have standard deviation `1 / sqrt(fan in)`, those that write to the
        residual stream start at zero, the embedding at 0.02.
        """
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                continue
            for s, generator in enumerate(generators):
                draw = torch.randn(parameter.shape[1:], generator=generator)
                std = 0.02 if name == "embedding" else parameter.shape[-2] ** -0.5
                zero = name.endswith((".out", ".down"))
                parameter[s].copy_(draw * (0.0 if zero else std))
        return self

    def forward(self, tokens_SBL: Tensor) -> Tensor:
        """Return (S, N, D) final activations of (S, B, L) tokens."""
        num_models, batch, length = tokens_SBL.shape
        offset = self.config.vocab_size * torch.arange(num_models, device=tokens_SBL.device)
        flat = tokens_SBL.reshape(num_models, -1) + offset.unsqueeze(1)
        x_SND = F.embedding(flat, self.embedding.flatten(0, 1))
        x_SND = F.rms_norm(x_SND, (x_SND.shape[-1],), eps=1e-6)
        rotation = self.cos[:length], self.sin[:length]
        for block in self.blocks:
            x_SND = block(x_SND, batch, rotation)
        return self.norm(x_SND)  # type: ignore[no-any-return]

    def token_losses(self, tokens_SBL: Tensor, targets_SBL: Tensor) -> Tensor:
        """Return (S, B, L) negative log-likelihoods of the targets, nats per token."""
        hidden_SND = self(tokens_SBL)
        logits_SNV = torch.bmm(hidden_SND, self.embedding.transpose(1, 2))
        losses = F.cross_entropy(logits_SNV.flatten(0, 1).float(), targets_SBL.reshape(-1), reduction="none")
        return losses.view(targets_SBL.shape)

    def moe_layers(self) -> list[MoeFeedForward]:
        """Return the routed layers, first block first; empty for a dense proxy."""
        return [block.moe for block in self.blocks if block.moe is not None]  # type: ignore[misc]


def _rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = rotation
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
