"""A mixture on its way to a trainer: its domains, the numbers to print, and the words that explain them.

The weights of a study are shares of tokens. A trainer that draws documents needs shares of documents,

    p_i = (w_i / L_i) / sum_j (w_j / L_j),    L_i: mean tokens per document of domain i,

and one that keeps a part of each domain needs (w_i / n_i) / max_j (w_j / n_j), n_i: tokens of
domain i. Knows no trainer's syntax: that is in `export_python.py` and `export_syntax.py`.
"""

from __future__ import annotations

import glob
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from mixopt.config import BUILTIN, DomainConfig, ExternalConfig, StudyConfig
from mixopt.errors import ConfigError
from mixopt.mixture import Array, Domain, Mixture

from .build import CORPUS
from .export_formats import DOCUMENTS, ROWS, TOKENS, Format
from .outputs import round_weights

_LOADERS = {".txt": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}
_DIGITS, _MOST_DIGITS = 6, 12


@dataclass(frozen=True)
class Source:
    """Where the text of a domain lies, in the words of `datasets.load_dataset`.

    Attributes:
        loader: `json`, `parquet` or `text`; for a hub dataset its name.
        path: File, folder or pattern as the study file has it; None for a hub dataset.
        files: The files as a pattern; None for a hub dataset.
        folder: Folder that file, folder or pattern lie in; empty for hub datasets and the built-in corpus.
        config: Configuration of the hub dataset, or None.
        split: Split of the hub dataset.
        column: Column that holds the text.
    """

    loader: str
    path: str | None
    files: str | None
    folder: str = ""
    config: str | None = None
    split: str = "train"
    column: str = "text"

    @classmethod
    def of(cls, domain: DomainConfig) -> Source:
        """Return the source of a domain of a study file."""
        if domain.path is None:
            return cls(domain.hub or "", None, None, "", domain.config, domain.split, domain.text)
        builtin = domain.path.startswith(BUILTIN)
        path = str(CORPUS / domain.path.removeprefix(BUILTIN)) if builtin else domain.path
        found = cls.at(path, domain.text)
        return replace(found, folder="") if builtin else found

    @classmethod
    def at(cls, path: str, column: str = "text") -> Source:
        """Return the source of a file, folder or pattern; the files need not be there."""
        files, folder = _pattern(path)
        loader = _LOADERS.get(Path(files).suffix, "json")
        return cls(loader, path, files, folder, column="text" if loader == "text" else column)

    @property
    def is_file(self) -> bool:
        """Whether it is a single file."""
        return self.path is not None and self.files == glob.escape(self.path)


@dataclass(frozen=True)
class Share:
    """One domain of a mixture.

    Attributes:
        name: The domain.
        weight: Its share of tokens.
        num_tokens: Tokens there are; 0 if unknown.
        num_docs: Documents there are; 0 if unknown.
        source: Where its text lies; None if only the user's trainer knows.
    """

    name: str
    weight: float
    num_tokens: int = 0
    num_docs: int = 0
    source: Source | None = None

    @property
    def tokens_per_document(self) -> float | None:
        """Mean tokens of a document; None if unknown."""
        return self.num_tokens / self.num_docs if self.num_tokens and self.num_docs else None

    @property
    def text(self) -> str:
        """Where the text lies, for people; empty if unknown."""
        return "" if self.source is None else self.source.path or self.source.loader

    def beside(self, suffix: str) -> str:
        """Return a path for this domain's files in a trainer's own format, beside its text."""
        folder = self.source.folder if self.source else ""
        return str(Path(folder) / self.name) + suffix


@dataclass(frozen=True)
class Blend:
    """A mixture in one format's unit.

    Attributes:
        form: The format.
        study: Name of the study.
        origin: Where the mixture comes from, in words.
        shares: K domains in the study's order.
        tokenizer: Fingerprint of the tokenizer that tokens are counted with; empty if unknown.
        target_tokens: Training tokens of the final model, if the study file says.
        unit: What the printed weights are shares of.
    """

    form: Format
    study: str
    origin: str
    shares: tuple[Share, ...]
    tokenizer: str = ""
    target_tokens: int | None = None
    unit: str = TOKENS

    @cached_property
    def tokens(self) -> dict[str, float]:
        """Shares of tokens of all K domains, as printed."""
        return printed(self._names, [share.weight for share in self.shares])

    @cached_property
    def documents(self) -> dict[str, float] | None:
        """Shares of documents of all K domains, as printed; None where document counts are missing."""
        lengths = [share.tokens_per_document for share in self.shares]
        if any(length is None and share.weight for length, share in zip(lengths, self.shares, strict=True)):
            return None
        ratios = [s.weight / length if length else 0.0 for s, length in zip(self.shares, lengths, strict=True)]
        return printed(self._names, ratios)

    @cached_property
    def weights(self) -> dict[str, float]:
        """The printed weights of the domains that have one, in `unit`."""
        if self.unit == ROWS:
            return {name: value for name, value in self._rows_kept().items() if value}
        values = self.documents if self.unit == DOCUMENTS else self.tokens
        return {name: value for name, value in (values or self.tokens).items() if value}

    @property
    def fallback(self) -> bool:
        """Whether shares of documents were wanted, and those of tokens had to be kept."""
        return self.unit == DOCUMENTS and self.documents is None

    @property
    def used(self) -> tuple[Share, ...]:
        """The domains of `weights`."""
        return tuple(share for share in self.shares if share.name in self.weights)

    @property
    def left_out(self) -> tuple[str, ...]:
        """The domains without weight."""
        return tuple(name for name in self._names if name not in self.weights)

    def epochs(self, share: Share) -> float | None:
        """Return how often a domain is read in `target_tokens`; None if unknown."""
        if self.target_tokens is None or not share.num_tokens:
            return None
        return share.weight * self.target_tokens / share.num_tokens

    @property
    def kept_tokens(self) -> float:
        """Tokens of all rows that are kept where the unit is that of rows."""
        return 1 / max(share.weight / share.num_tokens for share in self.shares if share.weight)

    @property
    def _names(self) -> list[str]:
        return [share.name for share in self.shares]

    def _rows_kept(self) -> dict[str, float]:
        unknown = [share.name for share in self.shares if share.weight and not share.num_tokens]
        if unknown:
            raise ConfigError(
                f"domains.{unknown[0]}.tokens: {self.form.name} keeps a part of each domain, which needs the tokens "
                "there are; add them to the study file and tell a run, or choose another --format"
            )
        ratios = np.array([s.weight / s.num_tokens if s.weight else 0.0 for s in self.shares])
        digits = _digits(ratios / ratios.max())
        # Never rounded to nothing, which the trainer would refuse.
        return {
            name: max(round(float(value), digits), 10.0**-digits) if value else 0.0
            for name, value in zip(self._names, ratios / ratios.max(), strict=True)
        }


def make_blend(
    form: Format,
    unit: str,
    mixture: Mixture,
    *,
    domains: Sequence[Domain],
    config: StudyConfig | ExternalConfig,
    origin: str,
    tokenizer: str = "",
) -> Blend:
    """Join a mixture with what the study knows of its domains.

    Args:
        form: The format.
        unit: What the weights are to be shares of.
        mixture: Shares of tokens.
        domains: K domains with their sizes.
        config: The study file.
        origin: Where the mixture comes from, in words.
        tokenizer: Fingerprint of the study's tokenizer.

    Raises:
        MixtureError: If a domain with weight is not among `domains`.
    """
    weights = mixture.over([domain.name for domain in domains]).as_dict()
    files = {} if isinstance(config, ExternalConfig) else config.domains
    shares = tuple(
        Share(d.name, weights[d.name], d.num_tokens, d.num_docs, Source.of(files[d.name]) if d.name in files else None)
        for d in domains
    )
    return Blend(form, config.name, origin, shares, tokenizer, config.constraints.target_tokens, unit)


def printed(names: Sequence[str], values: Sequence[float]) -> dict[str, float]:
    """Normalize and round numbers so that what is printed sums to exactly 1.

    Args:
        names: K names.
        values: K non-negative numbers.

    Returns:
        {name: share} with 6 decimals, or as many more (up to 12) as the smallest needs for 4 digits of its own.
    """
    mixture = Mixture.normalized(names, values)
    return round_weights(mixture, _digits(mixture.weights))


def _digits(values: Array) -> int:
    smallest = float(values[values > 0].min())
    return min(_MOST_DIGITS, max(_DIGITS, 3 - math.floor(math.log10(smallest))))


def _pattern(path: str) -> tuple[str, str]:
    """Return the files of a path as a pattern, and the folder that the path lies in."""
    place = Path(path)
    if place.is_dir():
        # The first file tells: a study has one kind of file per domain, and a folder may hold very many.
        kind = next((file.suffix for file in place.rglob("*") if file.suffix in _LOADERS), ".jsonl")
        return str(Path(glob.escape(path)) / "**" / f"*{kind}"), str(place.parent)
    if place.is_file() or not glob.has_magic(path):
        return glob.escape(path), str(place.parent)
    fixed = itertools.takewhile(lambda part: not glob.has_magic(part), place.parts)
    return path, str(Path(*fixed))
