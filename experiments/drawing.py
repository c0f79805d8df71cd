"""What all figures share: a drawing with its sentence and its numbers, and what stands where none can be drawn."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, TypeVar
from urllib.parse import quote

import numpy as np

Item = TypeVar("Item")
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Figure:
    """One drawing and what it shows.

    Attributes:
        name: Short, unique among figures; part of ids and file names.
        title: Heading.
        sentence: What the data say, computed from them.
        svg: The drawing, for use inside an HTML page.
        alt: Description for those who do not see it.
        rows: Its numbers; all of them, also where only some are drawn.
    """

    name: str
    title: str
    sentence: str
    svg: str
    alt: str
    rows: tuple[Row, ...] = ()

    @property
    def csv(self) -> str:
        """Its numbers as CSV."""
        return csv_of(self.rows)

    def _repr_html_(self) -> str:
        """Show the figure in a notebook, with its sentence and its numbers."""
        link = f'<a href="{csv_link(self.csv)}" download="{self.name}.csv">CSV</a>'
        return (
            f'<figure style="max-width: 32rem"><b>{escape(self.title)}</b>{self.svg}'
            f"<figcaption>{escape(self.sentence)} {link}</figcaption></figure>"
        )


@dataclass(frozen=True)
class Missing:
    """A figure that does not apply.

    Attributes:
        name: That of the figure.
        title: Its heading.
        reason: Why it cannot be drawn, one sentence.
    """

    name: str
    title: str
    reason: str

    def _repr_html_(self) -> str:
        """Say in a notebook why there is no drawing."""
        return f"<p><b>{escape(self.title)}</b>: {escape(self.reason)}</p>"


def csv_of(rows: Iterable[Row]) -> str:
    """Return rows as CSV under the fields of all, numbers with ten digits; missing values are empty."""
    listed, file = [dict(row) for row in rows], io.StringIO()
    if listed:
        names = list(dict.fromkeys(name for row in listed for name in row))
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(names)
        writer.writerows([_cell(row.get(name)) for name in names] for row in listed)
    return file.getvalue()


def _cell(value: Any) -> Any:
    return f"{value:.10g}" if isinstance(value, float) else value


def csv_link(text: str) -> str:
    """Return a link that holds the CSV itself."""
    return "data:text/csv;charset=utf-8," + quote(text, safe="/,:;()@*!~-_.")


def spaced(items: Sequence[Item], most: int) -> list[Item]:
    """Return at most so many items, evenly spaced, first and last among them."""
    if len(items) <= most:
        return list(items)
    return [items[i] for i in np.unique(np.linspace(0, len(items) - 1, most).round().astype(int))]


def several(num: int, word: str) -> str:
    """Return a number with its noun."""
    return f"{num:,} {word}{'' if num == 1 else 's'}"


def listed(names: Sequence[str], most: int = 4) -> str:
    """Return names in words: `a, b and c`, or `a, b and 7 others`."""
    if len(names) > most:
        names = [*names[: most - 1], f"{len(names) - most + 1} others"]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else "none"


def percent(share: float) -> str:
    """Return a share of tokens in words, with a digit more where it is small."""
    return f"{100 * share:.0f} %" if share >= 0.0995 or share == 0 else f"{100 * share:.1f} %"
