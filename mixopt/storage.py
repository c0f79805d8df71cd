"""The run directory: where things lie, and writes that are whole or not there.

A result file carries a checksum of its content; one that does not match is treated
as absent, so its job is done again. Only local and shared file systems for now.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import ResourceError, StudyBusyError, StudyError
from .identity import fingerprint

logger = logging.getLogger(__name__)

# A quota, or the limit on file sizes that batch systems set.
_LIMITS = (errno.EDQUOT, errno.EFBIG)
_LONGEST_NAME = 200  # bytes; file systems take 255, and temporary files add some


@contextmanager
def explained_errors(path: Path) -> Iterator[None]:
    """Translate a full disk, missing permission or a file in the way into one clear error."""
    try:
        yield
    except OSError as error:
        if error.errno in _LIMITS:
            raise ResourceError(
                f"cannot write {path}: {os.strerror(error.errno)} (a quota or a limit on file sizes); "
                "raise it and run the same command again"
            ) from error
        if error.errno == errno.ENOSPC:
            free = shutil.disk_usage(_existing_parent(path)).free
            raise ResourceError(
                f"no disk space left to write {path} ({free / 1e6:.0f} MB free); free some and run the same command again"
            ) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM, errno.EEXIST, errno.ENOTDIR):
            raise ResourceError(f"cannot write {path}: {error.strerror}; choose another place with --dir") from error
        raise


def _existing_parent(path: Path) -> Path:
    return next(parent for parent in [path, *path.absolute().parents] if parent.exists())


def free_bytes(path: Path) -> int:
    """Return the free bytes of the file system that holds (or will hold) `path`."""
    return shutil.disk_usage(_existing_parent(path)).free


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that replaces it if the block succeeds."""
    with explained_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
        os.close(handle)
        os.chmod(name, 0o644)
        temporary = Path(name)
        try:
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            with suppress(FileNotFoundError):
                temporary.unlink()


def _inside(folder: Path, name: str) -> Path:
    """Return a place in a folder; names come from ledgers and tables that others may have written.

    Raises:
        StudyError: If the name would lead elsewhere, or is none that a file system takes.
    """
    if (
        name in ("", ".", "..")
        or "/" in name
        or "\\" in name
        or not name.isprintable()
        or len(name.encode()) > _LONGEST_NAME
    ):
        raise StudyError(
            f"a name of at most {_LONGEST_NAME} bytes without slashes was expected in {folder}, got {name[:80]!r}; "
            "rename the trial or domain"
        )
    return folder / name


def save_array(path: Path, array: NDArray[Any]) -> None:
    """Write an array as .npy, atomically.

    Raises:
        ResourceError: If it cannot be written.
    """
    # For files open to write only numpy uses C's fwrite, whose errors do not say that the disk is full.
    with atomic_path(path) as temporary, temporary.open("w+b") as file:
        np.save(file, array)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write plain data atomically, with a checksum that `read_json` verifies."""
    write_text(path, json.dumps({"checksum": fingerprint(value), "value": value}, allow_nan=False))


def read_json(path: Path) -> Any | None:
    """Return what `write_json` wrote, or None where it is missing or damaged (with a warning)."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["checksum"] == fingerprint(data["value"]):
            return data["value"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        pass
    logger.warning("file damaged path=%s; it is ignored and made again", path)
    return None


@dataclass(frozen=True)
class RunDirectory:
    """Paths inside one study's run directory."""

    path: Path

    @property
    def ledger(self) -> Path:
        """The append-only ledger."""
        return self.path / "study.jsonl"

    @property
    def config(self) -> Path:
        """The resolved study file."""
        return self.path / "study.yaml"

    @property
    def tokens(self) -> Path:
        """Tokenizer and token shards."""
        return self.path / "tokens"

    @property
    def mixture(self) -> Path:
        """The recommended mixture."""
        return self.path / "mixture.yaml"

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.path / "report" / "report.html"

    def expert(self, domain: str) -> Path:
        """Index entry of a domain's data expert."""
        return _inside(self.path / "experts", f"{domain}.json")

    @property
    def scores(self) -> Path:
        """Token log-probabilities of experts, their cards, and the structure of evaluation sets."""
        return self.path / "scores"

    def score(self, key: str) -> Path:
        """Token log-probabilities of one expert on one evaluation set."""
        return _inside(self.scores, f"{key}.npy")

    def trial(self, trial_id: str) -> Path:
        """Folder of one trial: its state and curve."""
        return _inside(self.path / "trials", trial_id)

    def job(self, fingerprint_: str) -> Path:
        """Folder of one job: checkpoint while it runs, result when done."""
        return _inside(self.path / "jobs", fingerprint_)

    def result(self, fingerprint_: str) -> Path:
        """Content-hashed result file of one job."""
        return self.job(fingerprint_) / "result.json"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the study for one driver; a second one is refused at once.

        A directory that ends up with nothing in it but the lock is removed again.
        """
        lock = self.path / ".lock"
        with explained_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            file = lock.open("a+")
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                holder = file.read().strip() or "unknown"
                raise StudyBusyError(
                    f"another mixopt ({holder}) is running the study in {self.path}; wait for it or stop it first"
                ) from error
            with explained_errors(lock):
                file.truncate(0)
                os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode())
            try:
                yield
            finally:
                if list(self.path.iterdir()) == [lock]:
                    lock.unlink()
                    self.path.rmdir()
