"""How much text a folder holds, estimated from a sample of each domain.

Reads at most 200 kB per domain, so it is quick on any folder. Counts from a sample are
estimates; `mixopt check` counts all text. Nothing is trained but a throw-away tokenizer.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixopt.errors import ConfigError

from .initialize import FoundDomain, parquet_texts

SAMPLE_BYTES = 200_000
_FILES = 4  # sampled per domain: the first alone may not be like the others
_FEW_DOCUMENTS = 20


@dataclass(frozen=True)
class Surveyed:
    """A domain and what a sample says of it.

    Attributes:
        found: The domain.
        num_documents: Documents, estimated.
        text_bytes: Bytes of text without the file format, estimated.
        num_tokens: Tokens, estimated; 0 before `with_tokens`.
        sample: Documents that were read.
    """

    found: FoundDomain
    num_documents: float
    text_bytes: float
    num_tokens: float
    sample: tuple[str, ...]


@dataclass(frozen=True)
class _Read:
    """What was read of one file: its documents, and how many times more the file holds."""

    documents: tuple[str, ...]
    factor: float


def survey(domain: FoundDomain) -> Surveyed:
    """Read a sample of one domain; empty files are passed over.

    Raises:
        ConfigError: If a file of the sample cannot be read; the message names it.
    """
    files = [path for path in domain.files if path.stat().st_size]
    chosen = files[:: max(1, -(-len(files) // _FILES))]
    reads = [_read(path, domain.text, SAMPLE_BYTES // len(chosen)) for path in chosen]
    # Files that were not opened are taken to be like those that were, byte for byte.
    seen = sum(path.stat().st_size for path in chosen)
    unseen = sum(path.stat().st_size for path in files) / seen if seen else 0.0
    return Surveyed(
        domain,
        unseen * sum(len(read.documents) * read.factor for read in reads),
        unseen * sum(sum(len(d.encode()) for d in read.documents) * read.factor for read in reads),
        0.0,
        tuple(document for read in reads for document in read.documents),
    )


def _read(path: Path, column: str, num_bytes: int) -> _Read:
    from mixopt.proxies.text import pieces

    try:
        if path.suffix == ".parquet":
            return _Read(*parquet_texts(path, column, num_bytes))
        if path.suffix == ".txt":
            with path.open("rb") as file:
                raw = file.read(num_bytes)
            text = raw.decode("utf-8", errors="ignore" if len(raw) == num_bytes else "strict")
            documents = tuple(piece for piece in pieces(text) if piece.strip())
            return _Read(documents, path.stat().st_size / len(raw))
        rows, factor = _json_rows(path, num_bytes)
        return _Read(_texts(path, column, rows), factor)
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"cannot read {path}: {error}; repair or remove it") from error


def _json_rows(path: Path, num_bytes: int) -> tuple[list[Any], float]:
    """Return the first rows, and the file's rows per row returned."""
    size = path.stat().st_size
    if path.suffix == ".json":
        rows = json.loads(path.read_text(encoding="utf-8"))
        return (rows if isinstance(rows, list) else [rows]), 1.0
    with path.open("rb") as file:
        lines = file.readlines(num_bytes)  # whole lines, up to about that many bytes
    return [json.loads(line) for line in lines if line.strip()], size / sum(map(len, lines))


def _texts(path: Path, column: str, rows: Sequence[Any]) -> tuple[str, ...]:
    texts = [row.get(column) if isinstance(row, dict) else None for row in rows]
    if rows and not any(isinstance(text, str) for text in texts):
        raise ConfigError(
            f"{path}: column {column!r} holds no text; name the text column in the study file, or remove it"
        )
    return tuple(text for text in texts if isinstance(text, str) and text.strip())


def warnings(domains: Sequence[Surveyed], top_tokens: int, most_epochs: float) -> list[str]:
    """Return what would go wrong or mislead, in words, with a remedy each."""
    found = [line for domain in domains for line in _domain_warnings(domain, top_tokens, most_epochs)]
    return found + list(_look_alikes([domain.found.name for domain in domains]))


def _domain_warnings(domain: Surveyed, top_tokens: int, most_epochs: float) -> Iterator[str]:
    name, files = domain.found.name, domain.found.files
    empty = [path for path in files if not path.stat().st_size]
    if empty:
        more = f" and {len(empty) - 1} more files are" if len(empty) > 1 else " is"
        yield f"{name}: {empty[0]}{more} empty; remove what is empty, a run refuses it"
    kinds = sorted({path.suffix for path in files})
    if len(kinds) > 1:
        yield f"{name}: mixes {' and '.join(kinds)} files; keep one kind, or write a glob such as *{kinds[0]} as its path"
    if not domain.num_tokens:
        yield f"{name}: holds no text; fill it or leave it out"
        return
    epochs = top_tokens / domain.num_tokens
    if epochs > most_epochs:
        yield (
            f"{name}: far too small, its {rounded(domain.num_tokens)} tokens would be read {rounded(epochs)} times by its "
            f"expert at the top rung (up to {most_epochs:g} is fine); add text, or join it with another domain"
        )
    elif domain.num_documents < _FEW_DOCUMENTS:
        yield (
            f"{name}: few documents ({domain.num_documents:.0f}), of which some are held out for measuring; "
            "split long ones, or give it validation text"
        )


def _look_alikes(names: Sequence[str]) -> Iterator[str]:
    """Yield a line per set of names that differ in case, numbers or punctuation alone."""
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault("".join(filter(str.isalpha, name.casefold())).rstrip("s") or name, []).append(name)
    for group in (group for group in alike.values() if len(group) > 1):
        yield f"{', '.join(group)}: nearly the same name; if they are parts of one domain, put them into one folder"


def rounded(count: float) -> str:
    """Return an estimated count with two digits, as in 1,700,000."""
    return f"{float(f'{count:.2g}'):,.0f}"


def with_tokens(domains: Sequence[Surveyed], tokens_per_byte: Mapping[str, float]) -> list[Surveyed]:
    """Return the domains with their tokens, from the tokens per byte of each sample."""
    return [
        Surveyed(
            d.found, d.num_documents, d.text_bytes, d.text_bytes * tokens_per_byte.get(d.found.name, 0.0), d.sample
        )
        for d in domains
    ]
