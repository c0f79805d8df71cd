"""The proxy's shape and recipe: one dial (`depth`), the rest derived, all overridable.

No torch here: study files are checked and ladders priced without loading it.
Defaults are measured at 0.14M parameters on a CPU (docs/log.md); nothing above was
tried in this repository yet.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from mixopt.errors import ConfigError

OPTIMIZERS = ("adamw", "muon")
DTYPES = ("float32", "bfloat16")
ROUTERS = ("topk", "relu", "dense")

# Training recipe measured at depth 1 (0.14M parameters): higher rates diverge or lose.
_BASE_LEARNING_RATE = 6e-3
_BASE_BATCH_SIZE = 4
# Large proxies get more experts, so that depth 32 has 1B parameters of which 0.3B are active.
_LARGE_DEPTH = 16


@dataclass(frozen=True)
class ProxyConfig:
    """Shape and recipe of one proxy; zeros are replaced by values derived from `depth`.

    Attributes:
        vocab_size: Tokens of the tokenizer.
        depth: Transformer blocks; the dial that sets every other size.
        router: `topk` (MoE with loss-free balancing), `relu` (ReMoE: MoE with ReLU gates
            and an adaptive penalty) or `dense`, the control with the same active
            feed-forward width and no router.
        experts: Routed feed-forward experts per block; derived: 8, from depth 16 on 16.
        top_k: Routed experts a token goes to; under `relu` their mean over tokens.
        width: Model width; a multiple of `head_dim`.
        head_dim: Width of an attention head.
        kv_heads: Key-value heads; divides the number of heads.
        expert_width: Hidden width of a routed feed-forward expert.
        shared_width: Hidden width of the shared feed-forward expert.
        sequence_length: Tokens per sequence.
        batch_size: Sequences per step of one model; derived: 4, or the next multiple of
            `accumulate` (`laws` sets it for long runs).
        optimizer: `adamw`, or `muon` for hidden matrices with AdamW for the rest.
        learning_rate: Peak rate, constant after warm-up (`laws` sets it for long runs).
        decay: Share of the run's last steps with linear decay to zero. With decay, a
            run is good for its last rung only.
        warmup_steps: Steps of linear warm-up.
        weight_decay: On matrices only.
        clip: Largest gradient norm per model.
        ema: Decay of the averaged weights that are evaluated, per step.
        balance_step: Step of the loss-free balancing bias of `topk`.
        dtype: Of the matrix products in training: `float32`, or `bfloat16` (autocast;
            weights, optimizer and evaluation stay float32).
        activation_checkpointing: Keep only each block's input and compute the rest
            again in the backward pass.
        accumulate: Parts a batch is cut into, one after the other, to save memory.
    """

    vocab_size: int
    depth: int = 1
    router: str = "topk"
    experts: int = 0
    top_k: int = 2
    width: int = 0
    head_dim: int = 32
    kv_heads: int = 0
    expert_width: int = 0
    shared_width: int = 0
    sequence_length: int = 128
    batch_size: int = 0
    optimizer: str = "adamw"
    learning_rate: float = 0.0
    decay: float = 0.0
    warmup_steps: int = 20
    weight_decay: float = 0.1
    clip: float = 1.0
    ema: float = 0.99
    balance_step: float = 0.01
    dtype: str = "float32"
    activation_checkpointing: bool = False
    accumulate: int = 1

    def __post_init__(self) -> None:
        if self.router not in ROUTERS:
            raise ConfigError(f"proxy.router: expected one of {', '.join(ROUTERS)}, got {self.router!r}")
        if self.depth < 1:
            raise ConfigError(f"proxy.depth: expected at least 1, got {self.depth}")
        self._derive()
        self._check_recipe()
        if not 1 <= self.top_k <= self.experts:
            raise ConfigError(f"proxy.top_k: expected 1 to experts ({self.experts}), got {self.top_k}")
        if self.width % self.head_dim:
            raise ConfigError(f"proxy.width: expected a multiple of head_dim ({self.head_dim}), got {self.width}")
        if self.num_heads % self.kv_heads:
            raise ConfigError(f"proxy.kv_heads: expected a divisor of {self.num_heads} heads, got {self.kv_heads}")

    def _derive(self) -> None:
        width, parts = self.width or 64 * math.ceil(self.depth / 2), max(1, self.accumulate)
        derived = {
            "width": width,
            "experts": self.experts or (8 if self.depth < _LARGE_DEPTH else 16),
            "kv_heads": self.kv_heads or max(1, width // self.head_dim // 2),
            "expert_width": self.expert_width or width // 2,
            "shared_width": self.shared_width or width,
            "batch_size": self.batch_size or parts * math.ceil(_BASE_BATCH_SIZE / parts),
            "learning_rate": self.learning_rate or _BASE_LEARNING_RATE / math.sqrt(self.depth),
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    def _check_recipe(self) -> None:
        for name, known in (("optimizer", OPTIMIZERS), ("dtype", DTYPES)):
            if getattr(self, name) not in known:
                raise ConfigError(f"proxy.{name}: expected one of {', '.join(known)}, got {getattr(self, name)!r}")
        if not 0 <= self.decay < 1:
            raise ConfigError(f"proxy.decay: expected a share of the run's steps, 0 to below 1, got {self.decay:g}")
        if self.accumulate < 1 or self.batch_size % self.accumulate:
            raise ConfigError(
                f"proxy.accumulate: expected a divisor of batch_size ({self.batch_size}), got {self.accumulate}"
            )

    @property
    def num_heads(self) -> int:
        """Query heads."""
        return self.width // self.head_dim

    @property
    def active_ffn_width(self) -> int:
        """Hidden feed-forward width a token passes through."""
        return self.shared_width + self.top_k * self.expert_width

    @property
    def tokens_per_step(self) -> int:
        """Training tokens of one model per optimizer step."""
        return self.batch_size * self.sequence_length

    def num_steps(self, num_tokens: int) -> int:
        """Return the steps of a run of `num_tokens` (rounded up)."""
        return math.ceil(num_tokens / self.tokens_per_step)

    def to_json(self) -> dict[str, Any]:
        """Return plain data; part of every job's fingerprint."""
        return asdict(self)
