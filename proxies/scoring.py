"""Token log-probabilities of trained proxies on evaluation sets.

Documents are cut into rows of T predictions. A document starts after the separator,
a later row after the last token of the row before, so every token is scored once.

    S models, R rows, T sequence length
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .model import ProxyStack
from .tokens import TokenShard

_ROWS_PER_BATCH = 16


@dataclass(frozen=True, eq=False)
class ScoringRows:
    """An evaluation set cut into rows.

    Attributes:
        inputs: (R, T) tokens, padded with the separator.
        targets: (R, T) next tokens, padded likewise.
        mask: (R, T) True where a target counts; row-major order is document order.
    """

    inputs: NDArray[np.int64]
    targets: NDArray[np.int64]
    mask: NDArray[np.bool_]

    @classmethod
    def cut(cls, shard: TokenShard, sequence_length: int) -> ScoringRows:
        """Cut a shard's documents into rows."""
        separator = int(shard.meta["separator"])
        rows: list[tuple[Any, Any]] = []
        for start, end in zip(shard.offsets[:-1], shard.offsets[1:], strict=True):
            tokens = np.concatenate([[separator], shard.tokens[start:end].astype(np.int64)])
            for left in range(0, len(tokens) - 1, sequence_length):
                row = tokens[left : left + sequence_length + 1]
                rows.append((row[:-1], row[1:]))
        shape = (len(rows), sequence_length)
        inputs, targets, mask = np.full(shape, separator), np.full(shape, separator), np.zeros(shape, dtype=bool)
        for i, (x, y) in enumerate(rows):
            inputs[i, : len(x)], targets[i, : len(y)], mask[i, : len(y)] = x, y, True
        return cls(inputs, targets, mask)


@torch.no_grad()
def score(model: ProxyStack, rows: ScoringRows) -> NDArray[np.float32]:
    """Return (S, T) log-probabilities of all scored tokens, nats, in document order.

    T is the evaluation set's number of tokens here.
    """
    device = model.embedding.device
    parts = []
    for start in range(0, len(rows.inputs), _ROWS_PER_BATCH):
        here = slice(start, start + _ROWS_PER_BATCH)
        tokens = torch.from_numpy(rows.inputs[here]).to(device).expand(model.num_models, -1, -1)
        targets = torch.from_numpy(rows.targets[here]).to(device).expand(model.num_models, -1, -1)
        losses = model.token_losses(tokens, targets).cpu().numpy()
        parts.append(-losses[:, rows.mask[here]])
    return np.concatenate(parts, axis=1)
