"""Learning rates and batch sizes: by the budget of a run, and by its step.

Small runs keep what was measured here (`config`); above `LAW_FLOPS` a published law
sets rate and batch size where the study file does not. Also the sizes that the dial
`depth` gives. No torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from .config import ProxyConfig
from .cost import active_params, forward_flops_per_token, total_params, training_flops

# Training FLOPs up to which the measured recipe holds; the law asks for more than it can bear there.
LAW_FLOPS = 1e14
LARGEST_RATE = 1e-2
# A feed-forward expert learns little from fewer tokens per step.
_TOKENS_PER_EXPERT = 64


def law_learning_rate(flops: float) -> float:
    """Return the peak learning rate for a run of `flops` training FLOPs, at most `LARGEST_RATE`.

    Source: arXiv:2507.17702, Section 2.2, Eq. 3, fitted from 3e17 to 3e20 with AdamW
    and a warmup-stable-decay schedule; its C counts forward FLOPs, a third of ours,
    without the head, which we include. Below 3e17 it extrapolates.
    """
    return min(LARGEST_RATE, 1.1576 * math.pow(flops / 3, -0.1529))


def law_batch_tokens(flops: float) -> float:
    """Return the tokens per step for a run of `flops` training FLOPs; source as above."""
    return 0.0694 * math.pow(flops / 3, 0.3644)


def recipe(vocab_size: int, fields: Mapping[str, Any], num_tokens: int) -> ProxyConfig:
    """Return a shape with the recipe that a run of `num_tokens` calls for.

    Runs that share their checkpoints (nested rungs, continuations) must share one
    recipe, so `num_tokens` is that of the longest of them.

    Args:
        vocab_size: Tokens of the tokenizer.
        fields: Fields of `ProxyConfig`; a learning rate or batch size in there wins.
        num_tokens: Training tokens of the longest run of this shape.
    """
    config = ProxyConfig(vocab_size, **fields)
    flops = training_flops(config, num_tokens)
    if flops <= LAW_FLOPS:
        return config
    changes: dict[str, Any] = {}
    if not fields.get("learning_rate"):
        changes["learning_rate"] = law_learning_rate(flops)
    if not fields.get("batch_size"):
        changes["batch_size"] = _law_sequences(config, flops)
    return replace(config, **changes)


def rate(config: ProxyConfig, step: int, end: int) -> float:
    """Return the learning rate of the step after `step` steps, in a run of `end` steps.

    Linear warm-up, constant, and over the last `decay` of the run linear to zero: the
    first step after the run would have rate 0.
    """
    factor = min(1.0, (step + 1) / config.warmup_steps)
    if config.decay:
        factor = min(factor, (end - step) / max(1.0, config.decay * end))
    return config.learning_rate * max(0.0, factor)


@dataclass(frozen=True)
class Size:
    """What a setting of the dial gives.

    Attributes:
        depth: Transformer blocks.
        width: Model width.
        experts: Routed feed-forward experts per block.
        total: Parameters.
        active: Parameters one token uses.
        flops_per_token: Training FLOPs per token.
        learning_rate: Peak rate of a run of `tokens_per_param` tokens per active parameter.
        batch_tokens: Tokens per step of such a run.
    """

    depth: int
    width: int
    experts: int
    total: int
    active: int
    flops_per_token: float
    learning_rate: float
    batch_tokens: int


def sizes(depths: Iterable[int], vocab_size: int, *, tokens_per_param: float = 20.0) -> list[Size]:
    """Return one row per depth, all else derived.

    Args:
        depths: Settings of the dial.
        vocab_size: Tokens of the tokenizer.
        tokens_per_param: Length of the run that rate and batch size are for.
    """
    rows = []
    for depth in depths:
        active = active_params(ProxyConfig(vocab_size, depth))
        config = recipe(vocab_size, {"depth": depth}, int(tokens_per_param * active))
        rows.append(
            Size(
                depth, config.width, config.experts, total_params(config), active,
                3 * forward_flops_per_token(config), config.learning_rate, config.tokens_per_step,
            )
        )  # fmt: skip
    return rows


def _law_sequences(config: ProxyConfig, flops: float) -> int:
    fewest = _TOKENS_PER_EXPERT * config.experts / config.top_k
    sequences = max(law_batch_tokens(flops), fewest) / config.sequence_length
    # Parts of a batch are equal.
    return config.accumulate * max(1, math.ceil(sequences / config.accumulate))
