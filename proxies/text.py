"""Documents out of files and the hub, through `datasets`, with clear errors.

A source is a file, a folder or a glob of txt, jsonl, json or parquet files, or a hub
name. A txt file is one document, or pieces of about 4,000 characters if it is longer:
whole lines, and a longer line in parts. Documents are read as a stream, so no second
copy of the text is made on disk.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mixopt.errors import ConfigError, ResourceError
from mixopt.identity import file_fingerprint, fingerprint

_PIECE_CHARS = 4000
_BUILDERS = {".txt": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}


@dataclass(frozen=True)
class TextSource:
    """Where documents come from; exactly one of `path` and `hub` is set.

    Attributes:
        field: Place in the study file, for messages (`domains.web`).
        path: File, folder or glob.
        hub: Name of a hub dataset.
        config: Configuration of the hub dataset, or None.
        split: Split of the hub dataset.
        text: Column that holds the text (txt files have none).
    """

    field: str
    path: str | None = None
    hub: str | None = None
    config: str | None = None
    split: str = "train"
    text: str = "text"

    def __post_init__(self) -> None:
        if (self.path is None) == (self.hub is None):
            raise ConfigError(f"{self.field}: give exactly one of path and hub")

    def fingerprint(self) -> str:
        """Return the hash of the files' bytes and of what is read from them."""
        what = {key: value for key, value in asdict(self).items() if key not in ("field", "path")}
        content = [file_fingerprint(path) for path in self.files()] if self.path else []
        return fingerprint({"source": what, "content": content})

    def files(self) -> list[Path]:
        """Return the files in sorted order.

        Raises:
            ConfigError: If nothing is there, or the kinds of files are unknown or mixed.
        """
        assert self.path is not None
        root = Path(self.path)
        if root.is_file():
            found = [root]
        elif root.is_dir():
            found = sorted(p for p in root.rglob("*") if p.suffix in _BUILDERS and p.is_file())
        else:
            found = sorted(Path(name) for name in glob.glob(self.path, recursive=True) if Path(name).is_file())
        if not found:
            raise ConfigError(
                f"{self.field}.path: no txt, jsonl, json or parquet file at {self.path}; correct the path "
                "(relative paths start at the study file's folder)"
            )
        unknown = [p for p in found if p.suffix not in _BUILDERS]
        if unknown:
            raise ConfigError(
                f"{self.field}.path: {unknown[0]} is no txt, jsonl, json or parquet file; convert it or narrow the path"
            )
        if len({_BUILDERS[p.suffix] for p in found}) > 1:
            raise ConfigError(
                f"{self.field}.path: {self.path} mixes kinds of files; keep one kind or write a glob such as *.parquet"
            )
        empty = [p for p in found if p.stat().st_size == 0]
        if empty:
            raise ConfigError(f"{self.field}.path: {empty[0]} is empty; fill or remove it")
        return found

    def documents(self) -> Iterator[str]:
        """Yield the non-empty documents in file order.

        Raises:
            ConfigError: If a file cannot be read, the text column is missing or no
                text, or nothing is left.
        """
        count = 0
        long_files = self.path is not None and self.files()[0].suffix == ".txt"
        for row in self.rows():
            if self.text not in row:
                raise ConfigError(
                    f"{self.field}.text: no column {self.text!r} in {self.path or self.hub}; it has {', '.join(sorted(row))}"
                )
            value = row[self.text]
            if value is not None and not isinstance(value, str):
                raise ConfigError(
                    f"{self.field}.text: column {self.text!r} of {self.path or self.hub} holds {type(value).__name__}, expected text; name the text column"
                )
            for piece in pieces(value or "") if long_files else [value or ""]:
                if piece.strip():
                    count += 1
                    yield piece
        if not count:
            raise ConfigError(f"{self.field}: {self.path or self.hub} holds no document with text; fill it or drop it")

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield all rows in file order, every column.

        Raises:
            ConfigError: If a file cannot be read.
            ResourceError: If the hub cannot be reached.
        """
        import datasets

        datasets.disable_progress_bars()
        # It logs what it raises; one message is enough.
        datasets.logging.set_verbosity(datasets.logging.CRITICAL)
        try:
            yield from self._open(datasets)
        except (ConfigError, GeneratorExit):
            raise
        except (ConnectionError, TimeoutError) as error:
            raise ResourceError(
                f"{self.field}.hub: cannot reach {self.hub!r} ({error}); go online, or download it and give its path"
            ) from error
        except Exception as error:
            # datasets raises many kinds, often with the reason only in __cause__.
            reason = error.__cause__ or error
            place = self.path or self.hub
            raise ConfigError(
                f"{self.field}: cannot read {place}: {type(reason).__name__}: {reason}; repair or replace it"
            ) from error

    def _open(self, datasets: Any) -> Iterator[dict[str, Any]]:
        if self.hub:
            # Data, never code: `datasets` runs no scripts from the hub since version 4.
            return iter(datasets.load_dataset(self.hub, self.config, split=self.split, streaming=True))  # nosec B615
        files = self.files()
        builder = _BUILDERS[files[0].suffix]
        extra = {"sample_by": "document"} if builder == "text" else {}
        names = [glob.escape(str(path)) for path in files]  # the library expands patterns
        # A builder of the library's own, on local files.
        return iter(datasets.load_dataset(builder, data_files=names, split="train", streaming=True, **extra))  # nosec B615


def pieces(text: str) -> Iterator[str]:
    """Cut a long text at line ends, so that some of it can be held out and shuffled.

    Args:
        text: Any text; up to 4,000 characters are one piece.

    Yields:
        Pieces that add up to the text: whole lines up to the first line end at or after
        4,000 characters. A line longer than that counts as several, parted after a
        space where there is one, so that no piece has 8,000 characters.
    """
    piece: list[str] = []
    length = 0
    for line in text.splitlines(keepends=True) if len(text) > _PIECE_CHARS else [text]:
        for part in _parts(line):
            piece.append(part)
            length += len(part)
            if length >= _PIECE_CHARS:
                yield "".join(piece)
                piece, length = [], 0
    if length:
        yield "".join(piece)


def _parts(line: str) -> Iterator[str]:
    """Yield a line in parts of at most `_PIECE_CHARS` characters, cut after spaces where there are any."""
    start = 0
    while len(line) - start > _PIECE_CHARS:
        end = start + _PIECE_CHARS
        # The latter half only, so that a lone space early on makes no crumb.
        end = line.rfind(" ", start + _PIECE_CHARS // 2, end) + 1 or end
        yield line[start:end]
        start = end
    yield line[start:]
