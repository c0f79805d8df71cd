"""Token log-probabilities of trained proxies on evaluation sets.

Documents are cut into rows of T predictions. A document starts after the separator,
a later row after the last token of the row before, so every token is scored once. An
option of a multiple-choice task follows its context, of which nothing is scored: the
end of a long one, so that there is room for the option, but at least half a row.

    S models, R rows, T sequence length
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .model import ProxyStack
from .questions import TaskShard
from .tokens import TokenShard

_ROWS_PER_BATCH = 16


@dataclass(frozen=True, eq=False)
class ScoringRows:
    """An evaluation set cut into rows.

    Attributes:
        inputs: (R, T) tokens, padded with the separator.
        targets: (R, T) next tokens, padded likewise.
        mask: (R, T) True where a target counts; row-major order is document order.
        lengths: (R,) tokens before the padding.
    """

    inputs: NDArray[np.int64]
    targets: NDArray[np.int64]
    mask: NDArray[np.bool_]
    lengths: NDArray[np.int64]

    @classmethod
    def cut(cls, shard: TokenShard, sequence_length: int) -> ScoringRows:
        """Cut a shard's documents into rows."""
        separator = int(shard.meta["separator"])
        rows: list[tuple[Any, Any, Any]] = []
        contexts = shard.starts if isinstance(shard, TaskShard) else np.zeros(len(shard.offsets) - 1, dtype=np.int64)
        for start, end, context in zip(shard.offsets[:-1], shard.offsets[1:], contexts, strict=True):
            kept = min(context, max(sequence_length // 2, sequence_length - (end - start - context)))
            document = shard.tokens[start + context - kept : end].astype(np.int64)
            tokens, scored = np.concatenate([[separator], document]), np.arange(len(document)) >= kept
            for left in range(0, len(document), sequence_length):
                here = slice(left, left + sequence_length)
                rows.append((tokens[here][: len(document) - left], document[here], scored[here]))
        shape = (len(rows), sequence_length)
        inputs, targets, mask = np.full(shape, separator), np.full(shape, separator), np.zeros(shape, dtype=bool)
        for i, (x, y, counts) in enumerate(rows):
            inputs[i, : len(x)], targets[i, : len(y)], mask[i, : len(y)] = x, y, counts
        return cls(inputs, targets, mask, np.array([len(x) for x, _, _ in rows]))

    def batches(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Yield index pairs of rows to be computed together, cut at the longest of them.

        Rows of about one length go together: short ones, as options are, cost what they hold.
        """
        order = np.argsort(self.lengths, kind="stable")
        for start in range(0, len(order), _ROWS_PER_BATCH):
            chosen = order[start : start + _ROWS_PER_BATCH]
            rows, columns = np.ix_(chosen, np.arange(self.lengths[chosen[-1]]))
            yield rows, columns


@torch.no_grad()
def score(model: ProxyStack, rows: ScoringRows) -> NDArray[np.float32]:
    """Return (S, T) log-probabilities of all scored tokens, nats, in document order.

    T is the evaluation set's number of tokens here.
    """
    device = model.embedding.device
    found = np.zeros((model.num_models, *rows.mask.shape), dtype=np.float32)
    for here in rows.batches():
        tokens = torch.from_numpy(rows.inputs[here]).to(device).expand(model.num_models, -1, -1)
        targets = torch.from_numpy(rows.targets[here]).to(device).expand(model.num_models, -1, -1)
        found[(slice(None), *here)] = -model.token_losses(tokens, targets).cpu().numpy()
    return found[:, rows.mask]
