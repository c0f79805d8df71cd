"""What a proxy costs: parameters and nominal training FLOPs, without torch.

Under ReLU routing the number of active feed-forward experts is not set but comes out of
training: ladders are priced with `top_k`, runs are charged for what was measured.

Notation: d width, V vocabulary, T sequence length, n_l blocks.
"""

from __future__ import annotations

from .config import ProxyConfig


def _attention_params(config: ProxyConfig) -> int:
    kv_width = config.kv_heads * config.head_dim
    return config.width * (2 * config.width + 2 * kv_width)


def _expert_params(config: ProxyConfig) -> int:
    """Parameters of one routed feed-forward expert in all blocks."""
    return config.depth * 3 * config.width * config.expert_width


def _norm_params(config: ProxyConfig) -> int:
    return (2 * config.depth + 1) * config.width


def _router_params(config: ProxyConfig) -> int:
    return 0 if config.router == "dense" else config.width * config.experts


def active_params(config: ProxyConfig) -> int:
    """Return the parameters one token uses, tied embedding included; `top_k` routed experts."""
    block = _attention_params(config) + _router_params(config) + 3 * config.width * config.active_ffn_width
    return config.vocab_size * config.width + config.depth * block + _norm_params(config)


def total_params(config: ProxyConfig) -> int:
    """Return all trainable parameters, tied embedding included."""
    idle = 0 if config.router == "dense" else config.experts - config.top_k
    return active_params(config) + idle * _expert_params(config)


def forward_flops_per_token(config: ProxyConfig, active_experts: float | None = None) -> float:
    """Return forward FLOPs per token: matrices, router, head and causal attention.

    `2 N_act,ne + 2 d V + 2 n_l d T`; the factor of attention is half of the full
    square because positions only look back.

    Args:
        config: The shape.
        active_experts: Mean routed feed-forward experts per token and block, as
            measured; None for `top_k`.

    Source: METHODS 4.5, after the accounting of arXiv:2502.05172, Section 3.
    """
    more = 0.0 if active_experts is None else active_experts - config.top_k
    matrices = active_params(config) - _norm_params(config) + more * _expert_params(config)
    return 2.0 * matrices + 2.0 * config.depth * config.width * config.sequence_length


def training_flops(config: ProxyConfig, num_tokens: int, active_experts: float | None = None) -> float:
    """Return FLOPs of training on `num_tokens`: three forward passes' worth per token.

    Linear in the active experts, so their mean over the tokens gives the exact sum
    over steps, `3 sum_t f(kbar_t) B_t`. Source: METHODS 4.5.
    """
    return 3.0 * forward_flops_per_token(config, active_experts) * num_tokens
