"""HTML for notebooks: small tables in which every word is escaped. Draws nothing; needs no library."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape


def html_table(title: str, header: Sequence[str], rows: Iterable[Sequence[object]], *, note: str = "") -> str:
    """Return a table as HTML.

    Args:
        title: Its caption.
        header: Names of the columns.
        rows: Cells, one sequence per row; numbers are shown as they are.
        note: A sentence below, or none.
    """
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
    body = "".join(f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows)
    below = f"<p>{escape(note)}</p>" if note else ""
    caption = f'<caption style="text-align: left"><b>{escape(title)}</b></caption>'
    return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{below}"
