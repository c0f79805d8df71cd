"""What an exported mixture says in words: its unit, how it was converted, what to mind, its domains."""

from __future__ import annotations

import numpy as np

from .export import Blend
from .export_formats import DOCUMENTS, ROWS

_DIGITS = 6


def notes(blend: Blend) -> list[str]:
    """Return what a user must know of the numbers, a sentence each."""
    cautions = [line for line in blend.form.cautions if f"--unit {blend.unit}" not in line]
    return [*_unit(blend), *_text(blend), *cautions, *_domains(blend)]


def _unit(blend: Blend) -> list[str]:
    """Say what the numbers are shares of, why, and how they were converted."""
    form, unit = blend.form, blend.unit
    if blend.fallback:
        return [
            f"Shares of TOKENS, although {form.reason if unit == form.units[0] else 'documents were asked for.'}",
            "The study knows no document counts: divide each share by the domain's mean tokens per document and "
            "normalize, or pack the samples to equal length.",
        ]
    if unit == ROWS:
        return [
            f"Parts of each domain, not shares of the mixture: {form.reason}",
            f"An epoch over what is kept has {blend.kept_tokens:,.0f} tokens.",
        ]
    why = form.reason if unit == form.units[0] else f"as asked for with --unit {unit}."
    converted = "Converted: share of tokens / mean tokens per document, then normalized."
    return [f"Shares of {unit}: {why}", *([converted] if unit == DOCUMENTS else [])]


def _text(blend: Blend) -> list[str]:
    lines = []
    pieces = [
        share.name for share in blend.used if share.source and share.source.loader == "text" and share.source.path
    ]
    if pieces and blend.unit == DOCUMENTS and not blend.fallback:
        lines.append(
            f"Plain text ({', '.join(pieces)}) was counted in pieces of about 4,000 characters: "
            "cut it likewise, a piece per row, or its share will be off."
        )
    if blend.form.has_paths and any(share.source is None for share in blend.used):
        lines.append("The study does not know where the text lies: correct the paths below.")
    return lines


def _domains(blend: Blend) -> list[str]:
    lines = []
    if blend.tokenizer:
        lines.append(f"Tokens are those of the study's tokenizer ({blend.tokenizer}).")
    if any(blend.epochs(share) is not None for share in blend.used):
        lines.append(f"Epochs are passes over a domain at {blend.target_tokens:,} training tokens.")
    if blend.left_out and blend.form.name not in ("json", "yaml", "csv"):
        lines.append(f"Left out, no weight: {', '.join(blend.left_out)}.")
    return lines


def header(blend: Blend) -> list[str]:
    """Return the comment at the top of a file, as lines that begin with `#`."""
    title = f"{blend.form.name}: the mixture of study {blend.study} ({blend.origin}), written by mixopt export."
    lines = [title, *notes(blend), "", *_table(blend)]
    return [f"# {visible(line)}".rstrip() for line in lines]


def _table(blend: Blend) -> list[str]:
    """Return the domains with their numbers, aligned; columns without a number are left out."""
    documents = (blend.documents or {}) if DOCUMENTS in blend.form.units else {}
    lengths = [share.tokens_per_document if documents else None for share in blend.shares]
    columns: list[tuple[str, list[str]]] = [
        ("domain", [visible(share.name) for share in blend.shares]),
        ("share of tokens", [decimal(blend.tokens[share.name]) for share in blend.shares]),
        ("tokens", [f"{share.num_tokens:,}" if share.num_tokens else "" for share in blend.shares]),
        ("tokens per document", [_number(length, 1) for length in lengths]),
        ("share of documents", [decimal(documents[s.name]) if documents else "" for s in blend.shares]),
        ("epochs", [_number(blend.epochs(share), 3) for share in blend.shares]),
        ("text", [visible(share.text) for share in blend.shares]),
    ]
    kept = [(title, cells) for title, cells in columns if any(cells)]
    widths = [max(map(len, [title, *cells])) for title, cells in kept]
    rows = [[title for title, _ in kept], *map(list, zip(*(cells for _, cells in kept), strict=True))]
    left = ("domain", "text")
    return [
        "  ".join(
            cell.ljust(width) if title in left else cell.rjust(width)
            for cell, width, (title, _) in zip(row, widths, kept, strict=True)
        ).rstrip()
        for row in rows
    ]


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def decimal(value: float) -> str:
    """Return a printed weight without exponent, at least with 6 decimals."""
    exact = np.format_float_positional(value, trim="-")
    return exact if len(exact.partition(".")[2]) > _DIGITS else f"{value:.{_DIGITS}f}"


def visible(text: str) -> str:
    """Return a text that stays on its line: what cannot be printed is shown as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
