"""What a proxy costs: parameters and nominal training FLOPs, without torch.

Notation: d width, V vocabulary, T sequence length, n_l blocks.
"""

from __future__ import annotations

from .config import ProxyConfig


def _attention_params(config: ProxyConfig) -> int:
    kv_width = config.kv_heads * config.head_dim
    return config.width * (2 * config.width + 2 * kv_width)


def _norm_params(config: ProxyConfig) -> int:
    return (2 * config.depth + 1) * config.width


def _router_params(config: ProxyConfig) -> int:
    return config.width * config.experts if config.router == "topk" else 0


def active_params(config: ProxyConfig) -> int:
    """Return the parameters one token uses, tied embedding included."""
    block = _attention_params(config) + _router_params(config) + 3 * config.width * config.active_ffn_width
    return config.vocab_size * config.width + config.depth * block + _norm_params(config)


def total_params(config: ProxyConfig) -> int:
    """Return all trainable parameters, tied embedding included."""
    idle = (config.experts - config.top_k) * config.expert_width if config.router == "topk" else 0
    return active_params(config) + config.depth * 3 * config.width * idle


def forward_flops_per_token(config: ProxyConfig) -> float:
    """Return forward FLOPs per token: matrices, head and causal attention.

    `2 N_act,ne + 2 d V + 2 n_l d T`; the factor of attention is half of the full
    square because positions only look back.

    Source: METHODS 4.5, after the accounting of arXiv:2502.05172, Section 3.
    """
    matrices = active_params(config) - _norm_params(config)
    return 2.0 * matrices + 2.0 * config.depth * config.width * config.sequence_length


def training_flops(config: ProxyConfig, num_tokens: int) -> float:
    """Return FLOPs of training on `num_tokens`: three forward passes' worth per token."""
    return 3.0 * forward_flops_per_token(config) * num_tokens
