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

ROUTERS = ("topk", "dense")

# Training recipe measured at depth 1 (0.14M parameters): higher rates diverge or lose.
_BASE_LEARNING_RATE = 6e-3


@dataclass(frozen=True)
class ProxyConfig:
    """Shape and recipe of one proxy; zeros are replaced by values derived from `depth`.

    Attributes:
        vocab_size: Tokens of the tokenizer.
        depth: Transformer blocks; the dial that sets every other size.
        router: `topk` (MoE with loss-free balancing) or `dense`, the control with the
            same active feed-forward width and no router.
        experts: Routed feed-forward experts per block.
        top_k: Routed experts a token goes to.
        width: Model width; a multiple of `head_dim`.
        head_dim: Width of an attention head.
        kv_heads: Key-value heads; divides the number of heads.
        expert_width: Hidden width of a routed feed-forward expert.
        shared_width: Hidden width of the shared feed-forward expert.
        sequence_length: Tokens per sequence.
        batch_size: Sequences per step.
        learning_rate: Peak rate of AdamW, constant after warm-up.
        warmup_steps: Steps of linear warm-up.
        weight_decay: On matrices only.
        clip: Largest gradient norm per model.
        ema: Decay of the averaged weights that are evaluated, per step.
        balance_step: Step of the loss-free balancing bias.
    """

    vocab_size: int
    depth: int = 1
    router: str = "topk"
    experts: int = 8
    top_k: int = 2
    width: int = 0
    head_dim: int = 32
    kv_heads: int = 0
    expert_width: int = 0
    shared_width: int = 0
    sequence_length: int = 128
    batch_size: int = 4
    learning_rate: float = 0.0
    warmup_steps: int = 20
    weight_decay: float = 0.1
    clip: float = 1.0
    ema: float = 0.99
    balance_step: float = 0.01

    def __post_init__(self) -> None:
        if self.router not in ROUTERS:
            raise ConfigError(f"proxy.router: expected one of {', '.join(ROUTERS)}, got {self.router!r}")
        if self.depth < 1:
            raise ConfigError(f"proxy.depth: expected at least 1, got {self.depth}")
        if not 1 <= self.top_k <= self.experts:
            raise ConfigError(f"proxy.top_k: expected 1 to experts ({self.experts}), got {self.top_k}")
        derived = {
            "width": self.width or 64 * math.ceil(self.depth / 2),
            "learning_rate": self.learning_rate or _BASE_LEARNING_RATE / math.sqrt(self.depth),
        }
        width = int(derived["width"])
        derived["kv_heads"] = self.kv_heads or max(1, width // self.head_dim // 2)
        derived["expert_width"] = self.expert_width or width // 2
        derived["shared_width"] = self.shared_width or width
        for name, value in derived.items():
            object.__setattr__(self, name, value)
        if self.width % self.head_dim:
            raise ConfigError(f"proxy.width: expected a multiple of head_dim ({self.head_dim}), got {self.width}")
        if self.num_heads % self.kv_heads:
            raise ConfigError(f"proxy.kv_heads: expected a divisor of {self.num_heads} heads, got {self.kv_heads}")

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
