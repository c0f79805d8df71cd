"""The ledger file: checksummed lines of JSON, appended whole or not at all.

Knows nothing of what the events mean; that is `study.py`.
"""

from __future__ import annotations

import datetime
import json
import logging
import os
import time
from pathlib import Path
from typing import Any

from .errors import StudyError
from .identity import fingerprint
from .storage import explained_errors

logger = logging.getLogger(__name__)


class Ledger:
    """An append-only file of events; one writer at a time.

    Args:
        path: The file; made with the first event.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # Bytes up to the last confirmed line: what follows is torn and overwritten.
        self._size = 0

    def read(self) -> list[dict[str, Any]]:
        """Return all confirmed events; a torn last line is dropped.

        Raises:
            StudyError: If a line before the end is damaged; the message names it.
        """
        path = self.path
        if not path.exists():
            return []
        content = path.read_bytes()
        lines = content.split(b"\n")
        events = []
        self._size = content.rfind(b"\n") + 1
        for number, line in enumerate(lines, start=1):
            if not line:
                continue
            event = _parse(line)
            # Only what follows the last newline can be torn by a crash; whole or not, it was never confirmed.
            if event is None or number == len(lines):
                # A whole line and one more byte is no torn line: its newline was damaged later.
                if number == len(lines) and _parse(line[:-1]) is None:
                    logger.warning("ledger torn path=%s line=%d; the unfinished line is dropped", path, number)
                    break
                raise StudyError(
                    f"{path}, line {number}: the checksum does not match; restore a backup or cut the file before it"
                )
            events.append(event)
        return events

    def append(self, event: dict[str, Any]) -> dict[str, Any]:
        """Write one event with time and checksum; return it as it will be read back."""
        now = datetime.datetime.fromtimestamp(time.time(), datetime.UTC)
        event = {**event, "time": now.isoformat(timespec="milliseconds")}
        line = json.dumps({**event, "crc": fingerprint(event)}, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        path = self.path
        with explained_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            # Unbuffered, so that nothing is written behind our back after a refusal.
            with path.open("ab", buffering=0) as file:
                # A torn line, ours or a crashed driver's, must not run into the next one.
                file.truncate(self._size)
                try:
                    written = 0
                    while written < len(line):
                        written += file.write(line[written:])
                    os.fsync(file.fileno())
                except OSError:
                    file.truncate(self._size)
                    raise
        self._size += len(line)
        read_back: dict[str, Any] = json.loads(line)
        return read_back


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
        return event if event.pop("crc") == fingerprint(event) else None
    except (ValueError, AttributeError, KeyError, TypeError):
        return None
