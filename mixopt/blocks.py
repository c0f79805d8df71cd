"""Expert scores as blocks of terms: plain MDE, or weights that follow the document's prefix.

Plain MDE has one term per token, `log sum_k w_k p_k(t)`. With a temper tau the experts'
weights are multiplied with what the prefix says of them, and a second term is subtracted:

    evidence   e_k(t) = tau * (sum of log p_k over the tokens before t in its document, less
                        that of the expert with the most), at least -cap
    terms      log sum_k w_k exp(e_k(t)) p_k(t)  -  log sum_k w_k exp(e_k(t))

At tau = 1 without a cap that is the posterior of a mixture of documents, and whole documents
telescope to `log sum_k w_k p_k(document)`. The prefix starts anew at every document or option.

    K experts, T tokens of a block

Source: Belenki et al., ACL 2025, arXiv:2502.15950, Proposition 3.1 (as noted in METHODS 1.4:
plain MDE is exact only where prefixes are equally likely in all domains). Temper and cap are ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from .errors import ConfigError
from .mixing import Block, Single, Term
from .mixture import Array
from .passages import Integers
from .scores import ExpertScores

BLOCK_TOKENS = 1 << 15  # read at a time: 8 MB of 64 experts in single precision
_KEPT_BYTES = 1 << 28


@dataclass(frozen=True)
class Temper:
    """How mixture weights follow the prefix of a document.

    Attributes:
        tau: In [0, 1]; at 0 they do not (plain MDE).
        cap: Most that an expert can lose against the best one, nats, > 0; infinite for no limit.

    Raises:
        ConfigError: If one is out of range.
    """

    tau: float = 0.0
    cap: float = np.inf

    def __post_init__(self) -> None:
        if not 0 <= self.tau <= 1 or not self.cap > 0:
            raise ConfigError(
                f"temper: expected tau in [0, 1] and cap > 0, got tau {self.tau:g} and cap {self.cap:g}; correct it"
            )


PLAIN = Temper()


class BlockStore:
    """Blocks of evaluation sets, read once where there is room to keep them.

    Args:
        temper: Of the prefix posterior.
        room: Bytes to keep, for all sets together; what does not fit is read anew every time.
    """

    def __init__(self, temper: Temper, *, room: int = _KEPT_BYTES) -> None:
        self.temper = temper
        self._room = room
        self._kept: dict[str, tuple[Block, ...]] = {}

    def blocks(self, scores: ExpertScores, edges: Sequence[int] | None = None) -> Iterable[Block]:
        """Return the blocks of an evaluation set; the edges must be the same every time."""
        name = scores.passages.name
        if name not in self._kept:
            # Logarithms and values in single precision, their peak in double; two terms with a temper.
            size = scores.num_tokens * 8 * (len(scores.domains) + 1) * (1 if self.temper.tau == 0 else 2)
            if size > self._room:
                return read_blocks(scores, self.temper, edges=edges)
            self._room -= size
            self._kept[name] = tuple(read_blocks(scores, self.temper, edges=edges))
        return self._kept[name]


def read_blocks(scores: ExpertScores, temper: Temper = PLAIN, *, edges: Sequence[int] | None = None) -> Iterator[Block]:
    """Yield the tokens of an evaluation set, block by block.

    Args:
        scores: The experts' log-probabilities.
        temper: Of the prefix posterior.
        edges: Borders of the blocks, from 0 to the number of tokens; None for equal blocks.
    """
    if edges is None:
        edges = [*range(0, scores.num_tokens, BLOCK_TOKENS), scores.num_tokens]
    counted, offsets = scores.passages.counted, scores.passages.offsets
    sums_K = np.zeros(len(scores.domains))
    for start, stop in pairwise(edges):
        logs_KT = np.stack([np.asarray(array[start:stop]) for array in scores.logprobs]).astype(np.float32, copy=False)
        if temper.tau == 0:
            terms: tuple[Term, ...] = (Term.of(1, logs_KT),)
        else:
            prefix_KT, sums_K = _prefix_sums(logs_KT, offsets, start, sums_K)
            evidence_KT = np.maximum(temper.tau * (prefix_KT - prefix_KT.max(axis=0)), -temper.cap)
            terms = (Term.of(1, evidence_KT + logs_KT), Term.of(-1, evidence_KT))
        yield Block(terms, None if counted is None else counted[start:stop])


def _prefix_sums(logs_KT: Single, offsets: Integers, start: int, carried_K: Array) -> tuple[Array, Array]:
    """Return sums over the tokens before each one in its document, and those before the next block.

    Args:
        logs_KT: Log-probabilities of the block.
        offsets: (D + 1,) first token of each document.
        start: First token of the block.
        carried_K: Sums before the block's first token.
    """
    sums_KT = np.cumsum(logs_KT, axis=1, dtype=np.float64)
    sums_KT = np.concatenate([np.zeros((len(logs_KT), 1)), sums_KT], axis=1)
    places = np.arange(start, start + sums_KT.shape[1])
    begins = offsets[np.searchsorted(offsets, places, side="right") - 1]
    base_KT = np.where(begins >= start, sums_KT[:, np.maximum(begins - start, 0)], -carried_K[:, None])
    prefix_KT = sums_KT - base_KT
    return prefix_KT[:, :-1], prefix_KT[:, -1]
