"""Causal grouped-query attention of a stack, with rotary positions.

    S models in the stack, N tokens per model, D width, B sequences of L positions in all,
    H heads of C channels: queries, then keys, then values; R query heads per key-value head,
    J = B * key-value heads

On a CPU, short sequences are attended to with plain products over blocks of positions,
their probabilities kept for the backward pass: less work than the library's flash kernel
does there, which makes them again (0.72 to 0.83 of its seconds at L = 128, docs/log.md).
Long sequences and GPUs get the library's kernel. Never run on a GPU so far.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import ProxyConfig
from .kernels import at_least_float32

_ROPE_BASE = 10_000.0
# Probabilities kept grow with the square of the length.
_MAX_KEPT_LENGTH = 256
# Positions per block: half of 128 is where fewer products stop paying for more calls.
_BLOCK = 64


class StackedAttention(nn.Module):
    """Attention of S models."""

    def __init__(self, num_models: int, config: ProxyConfig) -> None:
        super().__init__()
        self.config = config
        num_heads = config.num_heads + 2 * config.kv_heads
        self.qkv = nn.Parameter(torch.empty(num_models, config.width, num_heads * config.head_dim))
        self.out = nn.Parameter(torch.empty(num_models, config.width, config.width))

    def forward(self, x_SND: Tensor, batch: int, turn_LHC: Tensor) -> Tensor:
        """Return (S, N, D) outputs; sequences are the `batch` equal parts of N."""
        num_models, num_tokens, _ = x_SND.shape
        qkv = torch.bmm(x_SND, self._paired())
        qkv_BLHC = qkv.view(num_models * batch, num_tokens // batch, -1, self.config.head_dim)
        mixed_BLD = attend(qkv_BLHC, turn_LHC, self.config.kv_heads)
        return torch.bmm(mixed_BLD.view(num_models, num_tokens, self.config.width), self.out)

    def _paired(self) -> Tensor:
        """Return the weights with channels i and i + C / 2 of queries and keys side by side.

        Stored weights keep halves apart, as most formats do; side by side they turn as
        complex numbers in one pass.
        """
        value_width = self.config.kv_heads * self.config.head_dim
        turned, still = self.qkv.split([self.qkv.shape[2] - value_width, value_width], dim=2)
        paired = turned.unflatten(2, (-1, 2, self.config.head_dim // 2)).transpose(-1, -2)
        return torch.cat([paired.flatten(2), still], dim=2)


def rotary_turns(config: ProxyConfig) -> Tensor:
    """Return the complex factors (L, H, C / 2) of heads; those of queries hold the scale of the scores."""
    angle = torch.outer(
        torch.arange(config.sequence_length).float(),
        _ROPE_BASE ** (-torch.arange(0, config.head_dim, 2).float() / config.head_dim),
    )
    turn_L1C = torch.polar(torch.ones_like(angle), angle).unsqueeze(1)
    queries = (turn_L1C / math.sqrt(config.head_dim)).expand(-1, config.num_heads, -1)
    keys = turn_L1C.expand(-1, config.kv_heads, -1)
    return torch.cat([queries, keys, torch.ones_like(keys)], dim=1)


def attend(qkv_BLHC: Tensor, turn_LHC: Tensor, num_kv: int) -> Tensor:
    """Return (B, L, D): each position's mixture of the values at and before it.

    Args:
        qkv_BLHC: Heads of queries, keys and values; channels 2 i and 2 i + 1 turn together.
        turn_LHC: Their factors, see `rotary_turns`.
        num_kv: Key-value heads; query head h is served by head h // R.
    """
    turned = _Turn.apply(qkv_BLHC, turn_LHC)  # type: ignore[no-untyped-call]
    short = qkv_BLHC.shape[1] <= _MAX_KEPT_LENGTH
    if short and qkv_BLHC.device.type == "cpu" and qkv_BLHC.dtype in (torch.float32, torch.float64):
        return _KeptAttention.apply(turned, num_kv)  # type: ignore[no-any-return,no-untyped-call]
    q, k, v = turned.transpose(1, 2).split([turned.shape[2] - 2 * num_kv, num_kv, num_kv], dim=1)
    k, v = (x.repeat_interleave(q.shape[1] // num_kv, dim=1) for x in (k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0).transpose(1, 2).flatten(2)


class _Turn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BLHC: Tensor, turn_LHC: Tensor) -> Tensor:
        ctx.save_for_backward(turn_LHC)
        return _turn(x_BLHC, turn_LHC)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _turn(grads[0].contiguous(), ctx.saved_tensors[0].conj()), None


def _turn(x_BLHC: Tensor, turn_LHC: Tensor) -> Tensor:
    turned = torch.view_as_complex(at_least_float32(x_BLHC).unflatten(-1, (-1, 2))) * turn_LHC
    return torch.view_as_real(turned).flatten(-2).to(x_BLHC.dtype)


class _KeptAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BLHC: Tensor, num_kv: int) -> Tensor:
        q_JRC, k_JLC, v_JLC = _by_group(x_BLHC, num_kv)
        repeat, parts, kept = q_JRC.shape[1] // k_JLC.shape[1], [], []
        for start, end in _blocks(k_JLC.shape[1]):
            scores = torch.bmm(q_JRC[:, start * repeat : end * repeat], k_JLC[:, :end].transpose(1, 2))
            later = torch.full((end - start, end - start), -torch.inf, dtype=scores.dtype).triu(1)
            scores[:, :, start:].add_(later.repeat_interleave(repeat, dim=0))
            kept.append(scores.softmax(-1))
            parts.append(torch.bmm(kept[-1], v_JLC[:, :end]))
        ctx.save_for_backward(q_JRC, k_JLC, v_JLC, *kept)
        ctx.shape = x_BLHC.shape
        return _to_positions(torch.cat(parts, dim=1), num_kv, x_BLHC.shape).flatten(2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        q_JRC, k_JLC, v_JLC, *kept = ctx.saved_tensors
        num_kv, repeat = k_JLC.shape[0] // ctx.shape[0], q_JRC.shape[1] // k_JLC.shape[1]
        (grad_JRC,) = _by_group(grads[0].unflatten(2, (-1, ctx.shape[3])), num_kv, queries_only=True)
        grad_q, grad_k, grad_v = torch.empty_like(q_JRC), torch.zeros_like(k_JLC), torch.zeros_like(v_JLC)
        for (start, end), probs in zip(_blocks(k_JLC.shape[1]), kept, strict=True):
            rows = slice(start * repeat, end * repeat)
            grad_probs = torch.bmm(grad_JRC[:, rows], v_JLC[:, :end].transpose(1, 2))
            grad_scores = torch.ops.aten._softmax_backward_data(grad_probs, probs, -1, probs.dtype)
            grad_v[:, :end] += torch.bmm(probs.transpose(1, 2), grad_JRC[:, rows])
            grad_k[:, :end] += torch.bmm(grad_scores.transpose(1, 2), q_JRC[:, rows])
            grad_q[:, rows] = torch.bmm(grad_scores, k_JLC[:, :end])
        parts = (_to_positions(grad, num_kv, ctx.shape) for grad in (grad_q, grad_k, grad_v))
        return torch.cat(list(parts), dim=2), None


def _blocks(length: int) -> list[tuple[int, int]]:
    return [(start, min(start + _BLOCK, length)) for start in range(0, length, _BLOCK)]


def _by_group(x_BLHC: Tensor, num_kv: int, *, queries_only: bool = False) -> list[Tensor]:
    """Return queries (J, L * R, C), keys and values (J, L, C): rows by position, a group per key-value head."""
    num_queries = x_BLHC.shape[2] - (0 if queries_only else 2 * num_kv)
    parts = x_BLHC.split([num_queries] if queries_only else [num_queries, num_kv, num_kv], dim=2)
    return [part.unflatten(2, (num_kv, -1)).transpose(1, 2).flatten(0, 1).flatten(1, 2) for part in parts]


def _to_positions(x_JRC: Tensor, num_kv: int, shape: torch.Size) -> Tensor:
    """Return (B, L, heads, C): the inverse of `_by_group`."""
    batch, length, _, channels = shape
    return x_JRC.view(batch, num_kv, length, -1, channels).transpose(1, 2).flatten(2, 3)
