"""Evaluation text that was trained on: runs of tokens that occur in both.

The field's usual test is 13 words in a row (Brown et al. 2020, arXiv:2005.14165,
Appendix C). Here a word is six bytes, so that the test runs on token shards, in every
language and a block at a time: an overlap is a run of tokens about as long as 13 words.

    T tokens of a shard, n tokens in a run
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixopt.identity import fingerprint
from mixopt.storage import read_json, write_json

from .tokenizer import TextTokenizer
from .tokens import TokenShard

_RUN_BYTES = 13 * 6
_BASE = 0x9E3779B97F4A7C15  # odd: multiplying by it loses nothing
_BLOCK = 1 << 20
_TABLE = np.uint64((1 << 24) - 1)
_MOST_EXAMPLES = 3


@dataclass(frozen=True)
class Overlap:
    """What an evaluation set has in common with one domain's training text.

    Attributes:
        share: Of the set's runs, those that occur in the domain.
        documents: Share of the set's documents that occur there with more than half of their runs.
        examples: Beginnings of up to three of these documents.
    """

    share: float
    documents: float
    examples: tuple[str, ...]


def overlaps(
    measured: Mapping[str, TokenShard], domains: Mapping[str, TokenShard], tokenizer: TextTokenizer, root: Path
) -> dict[tuple[str, str], Overlap]:
    """Return {(evaluation set, domain): overlap}; found once and remembered beside the shards.

    Args:
        measured: Evaluation sets.
        domains: Training text.
        tokenizer: That of all shards.
        root: Folder of the shards.
    """
    length = _run_length(measured.values())
    found: dict[tuple[str, str], Overlap] = {}
    for domain, text in domains.items():
        keys = {name: fingerprint([length, _identity(shard), _identity(text)]) for name, shard in measured.items()}
        files = {name: root / "overlap" / f"{key}.json" for name, key in keys.items()}
        kept = {name: read_json(path) for name, path in files.items()}
        known = {
            name: Overlap(value["share"], value["documents"], tuple(value["examples"]))
            for name, value in kept.items()
            if value is not None
        }
        missing = {name: shard for name, shard in measured.items() if name not in known}
        for name, overlap in _in_domain(missing, text, length, tokenizer).items():
            known[name] = overlap
            write_json(files[name], asdict(overlap))
        found |= {(name, domain): known[name] for name in measured}
    return found


def _identity(shard: TokenShard) -> str:
    return str(shard.meta["fingerprint"])


def _run_length(shards: Iterable[TokenShard]) -> int:
    """Return the tokens of a run, the same for all sets, so that training text is read once."""
    num_tokens, num_bytes = np.sum([[s.meta["num_tokens"], s.meta["num_bytes"]] for s in shards], axis=0)
    return max(2, round(_RUN_BYTES * float(num_tokens / num_bytes)))


def _in_domain(
    measured: Mapping[str, TokenShard], text: TokenShard, length: int, tokenizer: TextTokenizer
) -> dict[str, Overlap]:
    """Return the overlap of each set with one domain, reading its tokens once."""
    runs = {name: _hashes(shard.tokens[:], length) for name, shard in measured.items()}
    wanted = np.sort(np.concatenate([np.zeros(0, dtype=np.uint64), *runs.values()]))
    common, maybe = [np.zeros(0, dtype=np.uint64)], np.zeros(int(_TABLE) + 1, dtype=bool)
    maybe[wanted & _TABLE] = True
    for start in range(0, len(text.tokens) if runs else 0, _BLOCK):
        block = _hashes(text.tokens[start : start + _BLOCK + length - 1], length)
        # Most runs of training text are nowhere else: a table of the hashes' last bits says so without sorting them.
        block = block[maybe[block & _TABLE]]
        common.append(block[_among(block, wanted)])
    there = np.sort(np.concatenate(common))
    return {name: _summary(shard, _among(runs[name], there), length, tokenizer) for name, shard in measured.items()}


def _summary(shard: TokenShard, hits: NDArray[np.bool_], length: int, tokenizer: TextTokenizer) -> Overlap:
    # Runs that begin in one document and end in the next are nobody's text: left out.
    spans = [(start, end - length + 1) for start, end in pairwise(shard.offsets.tolist()) if end - start >= length]
    counts = np.array([[hits[a:b].sum(), b - a] for a, b in spans]).reshape(-1, 2)
    copies = [a for (a, _), (same, total) in zip(spans, counts, strict=True) if same > total / 2]
    examples = tuple(tokenizer.decode(shard.tokens[a : a + length].tolist()) for a in copies[:_MOST_EXAMPLES])
    return Overlap(float(counts[:, 0].sum() / max(1, counts[:, 1].sum())), len(copies) / max(1, len(spans)), examples)


def _among(values: NDArray[np.uint64], known: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Return which values are among the known ones, which are sorted; `np.isin` takes ten times as long here."""
    if not len(known):
        return np.zeros(len(values), dtype=bool)
    return np.asarray(known[np.minimum(np.searchsorted(known, values), len(known) - 1)] == values)


def _hashes(tokens: NDArray[Any], length: int) -> NDArray[np.uint64]:
    """Return the hash of every run of `length` tokens, (T - length + 1,): a polynomial in the base, modulo 2^64.

    Runs of 1, 2, 4, ... tokens are joined, as Karp and Rabin 1987 join them.
    """
    part, size = tokens.astype(np.uint64) + np.uint64(1), 1
    total, done = np.zeros(len(tokens) + 1, dtype=np.uint64), 0
    while True:
        if length & size:
            total, done = _joined(total, part, done, size), done + size
        if done == length:
            return total
        part, size = _joined(part, part, size, size), 2 * size


def _joined(left: NDArray[np.uint64], right: NDArray[np.uint64], start: int, size: int) -> NDArray[np.uint64]:
    """Hash runs of `start` tokens, each with the run of `size` tokens that begins after it."""
    num = max(0, len(right) - start)
    return left[:num] * np.uint64(pow(_BASE, size, 1 << 64)) + right[start:]
