"""Text to token shards, once; and the sampler that mixes them exactly.

A shard is a folder of memory-mapped arrays named by the hash of its text and
tokenizer, so it is built once and never confused with another. The sampler is a
function of (seed, step): it keeps no state, so resume and continuation are exact.

    D documents, T sequence length, K domains
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from mixopt.errors import ConfigError
from mixopt.identity import file_fingerprint, fingerprint
from mixopt.mixture import Mixture
from mixopt.seeding import derive, generator
from mixopt.storage import atomic_path, read_json, save_array, write_json

from .tokenizer import TextTokenizer

logger = logging.getLogger(__name__)

_GOLDEN = (5**0.5 - 1) / 2
_DOCUMENTS_AT_ONCE = 512


@dataclass(frozen=True)
class TokenShard:
    """Tokens of one domain or evaluation set on disk, opened by memory map.

    Attributes:
        path: Folder with tokens.npy (all documents back to back, no separators),
            offsets.npy (D + 1,) and meta.json.
    """

    path: Path

    @cached_property
    def meta(self) -> dict[str, Any]:
        """Counts, separator and fingerprint."""
        meta = read_json(self.path / "meta.json")
        if meta is None:
            raise ConfigError(f"token shard {self.path} is missing or damaged; run the study again to rebuild it")
        return dict(meta)

    @cached_property
    def tokens(self) -> NDArray[Any]:
        """(num_tokens,) unsigned integers."""
        return self._load("tokens.npy", mmap_mode="r")

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """(D + 1,) start of each document; the last entry is num_tokens."""
        return self._load("offsets.npy")

    def _load(self, name: str, **options: Any) -> NDArray[Any]:
        try:
            return np.load(self.path / name, allow_pickle=False, **options)  # type: ignore[no-any-return]
        except Exception as error:  # numpy parses the header as Python and lets any error of that through
            raise ConfigError(
                f"token shard {self.path}: {name} is missing or damaged ({error}); "
                "remove the folder and run the study again to rebuild it"
            ) from error

    @classmethod
    def build(
        cls, root: Path, name: str, documents: Iterable[str], *, tokenizer: TextTokenizer, key: Mapping[str, Any]
    ) -> TokenShard:
        """Tokenize documents into a shard, or reuse the one that is there.

        Args:
            root: Folder of all shards.
            name: Readable part of the folder's name.
            documents: Read only if the shard is not there.
            tokenizer: Tokenizer; part of the identity.
            key: Plain data that determines `documents`.
        """
        identity = fingerprint({"tokenizer": tokenizer.fingerprint, **key})
        shard = cls(root / f"{name}-{identity}")
        if not is_whole(shard.path):
            shard._write(documents, tokenizer, identity, max_tokens=key.get("max_tokens"))
        return shard

    def _write(self, documents: Iterable[str], tokenizer: TextTokenizer, identity: str, max_tokens: int | None) -> None:
        """Write the three files; only one batch of documents is held in memory, and 8 bytes per document."""
        dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)
        offsets = array("q", [0])
        num_bytes = 0
        with growing_array(self.path / "tokens.npy", dtype) as file:
            for ids, size in _encoded(documents, tokenizer, max_tokens):
                file.write(np.asarray(ids, dtype).tobytes())
                offsets.append(offsets[-1] + len(ids))
                num_bytes += size
        save_array(self.path / "offsets.npy", np.frombuffer(offsets, dtype=np.int64))
        meta = {"num_tokens": offsets[-1], "num_docs": len(offsets) - 1, "num_bytes": num_bytes}
        whole = {**meta, "separator": tokenizer.separator, "fingerprint": identity, **checksums(self.path)}
        write_json(self.path / "meta.json", whole)
        logger.info("shard built path=%s tokens=%d documents=%d", self.path, meta["num_tokens"], meta["num_docs"])


def checksums(path: Path) -> dict[str, dict[str, str]]:
    """Return what a shard's meta.json says of the arrays beside it: {"files": {name: hash}}."""
    return {"files": {file.name: file_fingerprint(file) for file in sorted(path.glob("*.npy"))}}


def is_whole(path: Path) -> bool:
    """Whether a shard is there as it was written; reads all of it, once per start of a study."""
    meta = read_json(path / "meta.json")
    if meta is None:
        return False
    # Shards of earlier versions do not say.
    files = meta.get("files", {})
    damaged = [
        name for name, digest in files.items() if not (path / name).exists() or file_fingerprint(path / name) != digest
    ]
    if damaged:
        logger.warning("token shard damaged path=%s files=%s; it is made again", path, ",".join(damaged))
    return not damaged


def _encoded(
    documents: Iterable[str], tokenizer: TextTokenizer, max_tokens: int | None
) -> Iterator[tuple[list[int], int]]:
    """Yield token ids and size in bytes of each document that has tokens, or of its first `max_tokens`."""
    stream = iter(documents)
    while batch := list(islice(stream, _DOCUMENTS_AT_ONCE)):
        for text, encoding in zip(batch, tokenizer.encode(batch), strict=True):
            ids = encoding.ids[:max_tokens]
            if ids:
                whole = len(ids) == len(encoding.ids)
                yield ids, len((text if whole else text[: encoding.offsets[len(ids) - 1][1]]).encode())


def spread(documents: Sequence[str], num_tokens: int, tokenizer: TextTokenizer) -> tuple[list[str], int]:
    """Choose documents evenly spread over a set, enough for about `num_tokens`.

    Args:
        documents: The whole set.
        num_tokens: Tokens wanted.
        tokenizer: Used to estimate tokens per document.

    Returns:
        The documents and the number of tokens to keep of each: at least 16 documents
        share the tokens where there are as many, so that no single one dominates.
    """
    per_document = max(1, num_tokens // min(16, len(documents)))
    probe = documents[:: max(1, len(documents) // 64)]
    mean = np.mean([min(per_document, len(e.ids)) for e in tokenizer.encode(probe)])
    count = min(len(documents), max(1, round(num_tokens / max(1.0, float(mean)))))
    positions = ((np.arange(count) + 0.5) * len(documents) / count).astype(int)
    return [documents[i] for i in positions], per_document


@contextmanager
def growing_array(path: Path, dtype: np.dtype[Any]) -> Iterator[BinaryIO]:
    """Yield a file to write elements to; it becomes what `np.save` writes of the (N,) array of them all.

    Raises:
        ResourceError: If it cannot be written; then nothing is at `path`.
    """
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False}
    with atomic_path(path) as temporary, temporary.open("w+b") as file:
        np.lib.format.write_array_header_1_0(file, {**header, "shape": (0,)})
        start = file.tell()
        yield file
        length = (file.tell() - start) // dtype.itemsize
        file.seek(0)
        np.lib.format.write_array_header_1_0(file, {**header, "shape": (length,)})
        # numpy leaves room in the header for any length of the first axis.
        assert file.tell() == start


class DomainStream:
    """One domain's documents as an endless token stream, shuffled anew every epoch.

    A separator precedes each document. Sequence n holds the tokens from n * T to
    (n + 1) * T, and one more as its last target.
    """

    def __init__(self, shard: TokenShard, seed: int) -> None:
        self._shard = shard
        self._seed = seed
        self._lengths = np.diff(shard.offsets) + 1
        self.epoch_length = int(self._lengths.sum())
        self._epochs: dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}

    def read(self, start: int, length: int) -> NDArray[np.int64]:
        """Return `length` tokens from position `start` of the stream."""
        pieces: list[NDArray[Any]] = []
        while length > 0:
            epoch, position = divmod(start, self.epoch_length)
            order, ends = self._order(epoch)
            rank = int(np.searchsorted(ends, position, side="right"))
            document = int(order[rank])
            skip = position - (int(ends[rank]) - int(self._lengths[document]))
            take = min(length, int(ends[rank]) - position)
            pieces.append(self._document(document, skip, take))
            start, length = start + take, length - take
        return np.concatenate(pieces)

    def _document(self, document: int, skip: int, take: int) -> NDArray[np.int64]:
        begin = int(self._shard.offsets[document]) + skip - 1
        if skip > 0:
            return self._shard.tokens[begin : begin + take].astype(np.int64)
        head = np.array([self._shard.meta["separator"]], dtype=np.int64)
        return np.concatenate([head, self._shard.tokens[begin + 1 : begin + take].astype(np.int64)])

    def _order(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        if epoch not in self._epochs:
            if len(self._epochs) > 2:
                self._epochs.clear()
            order = generator(self._seed, "epoch", epoch).permutation(len(self._lengths))
            self._epochs[epoch] = (order, np.cumsum(self._lengths[order]))
        return self._epochs[epoch]


class MixtureSampler:
    """Batches of packed sequences whose token shares follow the mixture weights.

    Slot n of the run goes to the domain whose interval of the cumulative weights
    holds `frac(offset + n * golden ratio)`, with a uniform random offset: every slot
    has the exact weights as its marginal probabilities, and the shares of the first n
    slots differ from the weights by O(log n / n) instead of O(1 / sqrt(n)).

    Source: Kronecker sequences, Niederreiter 1992, Section 3.1.

    Args:
        shards: {domain: shard} with at least the domains of positive weight.
        mixture: Mixture weights.
        seed: The trial's seed.
        sequence_length: T; documents are packed, so it may be longer than any of them.

    Raises:
        ConfigError: If a domain of positive weight has no tokens.
    """

    def __init__(self, shards: Mapping[str, TokenShard], mixture: Mixture, *, seed: int, sequence_length: int) -> None:
        self.mixture = mixture
        self.sequence_length = sequence_length
        used = {name: weight for name, weight in mixture.as_dict().items() if weight > 0}
        for name, weight in used.items():
            if name not in shards or not shards[name].meta["num_tokens"]:
                raise ConfigError(
                    f"domains.{name}: its weight is {weight:g}, but it has no tokens to train on; add text or drop it"
                )
        self._edges = np.cumsum(mixture.weights)
        self._last = int(np.flatnonzero(mixture.weights)[-1])
        self._offset = float(generator(seed, "slots").random())
        self._streams = {name: DomainStream(shards[name], derive(seed, "stream", name)) for name in used}
        self._positions = np.zeros(0, dtype=np.int64)
        self._slots = np.zeros(0, dtype=np.int64)

    def batch(self, step: int, batch_size: int) -> NDArray[np.int64]:
        """Return (batch_size, T + 1) tokens of a step; inputs and targets overlap by T - 1."""
        self._plan((step + 1) * batch_size)
        names = self.mixture.domains
        rows = range(step * batch_size, (step + 1) * batch_size)
        length = self.sequence_length
        return np.stack(
            [self._streams[names[self._slots[n]]].read(int(self._positions[n]) * length, length + 1) for n in rows]
        )

    def counts(self, num_sequences: int) -> dict[str, int]:
        """Return how many of the first sequences come from each domain."""
        self._plan(num_sequences)
        found = np.bincount(self._slots[:num_sequences], minlength=len(self.mixture.domains))
        return dict(zip(self.mixture.domains, map(int, found), strict=True))

    def epochs(self, num_sequences: int) -> dict[str, float]:
        """Return the passes over each domain's tokens in the first sequences."""
        return {
            name: count * self.sequence_length / self._streams[name].epoch_length if count else 0.0
            for name, count in self.counts(num_sequences).items()
        }

    def _plan(self, num_sequences: int) -> None:
        if num_sequences <= len(self._slots):
            return
        total = max(num_sequences, 2 * len(self._slots), 1024)
        points = np.mod(self._offset + np.arange(total) * _GOLDEN, 1.0)
        slots = np.minimum(np.searchsorted(self._edges, points, side="right"), self._last)
        positions = np.empty(total, dtype=np.int64)
        for k in range(len(self._edges)):
            mine = slots == k
            positions[mine] = np.arange(int(mine.sum()))
        self._slots, self._positions = slots, positions
