"""Files of a study for nodes that do not see its run directory.

Such a worker has a folder of its own: what a job reads is placed there, and what it wrote goes
back to the driver. Contents are named by their SHA-256 and checked wherever they arrive. They
travel with Ray's messages, or through a store that driver and nodes reach (any URL of fsspec).
A store also keeps checkpoints and finished jobs, so a node that dies costs the seconds since its
last checkpoint, and a job that ends while no driver listens is not done again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .errors import ConfigError, ResourceError, StudyError
from .identity import fingerprint
from .protocols import Job
from .storage import RunDirectory, atomic_path, explained_errors, write_text

logger = logging.getLogger(__name__)

Content = NDArray[np.uint8]
# Paths relative to the run directory -> SHA-256 of what is there.
Files = dict[str, str]

_MIRROR_SECONDS = 2.0


class TransferError(OSError):
    """A content did not arrive as it was sent; worth another attempt."""


class Depot(Protocol):
    """Where contents lie while they travel."""

    def send(self, path: Path, digest: str) -> None:
        """Make the content of a file available."""

    def fetch(self, digest: str, path: Path) -> None:
        """Write a content to `path`, whole or not at all."""


@dataclass
class MessageDepot:
    """Contents inside messages: what is fetched was received, what is sent goes with the answer.

    Attributes:
        load: Digest -> content.
        sent: What is to be sent.
    """

    load: Callable[[str], Content]
    sent: dict[str, Content] = field(default_factory=dict)

    def send(self, path: Path, digest: str) -> None:
        """Keep the content for the answer."""
        self.sent[digest] = np.fromfile(path, dtype=np.uint8)

    def fetch(self, digest: str, path: Path) -> None:
        """Write a received content."""
        with atomic_path(path) as temporary:
            self.load(digest).tofile(temporary)
            _check(temporary, digest)


class UrlDepot:
    """Contents in a store that driver and nodes reach, such as `s3://bucket/folder` or a mounted folder.

    Layout: `blobs/<digest>`, `jobs/<job>.json` (the files of a finished job, written last) and
    `checkpoints/<job>.json`.

    Args:
        url: Any URL of fsspec; a path is a folder that all nodes see.

    Raises:
        ConfigError: If the URL's protocol is unknown or its library is missing.
    """

    def __init__(self, url: str) -> None:
        import fsspec

        try:
            self._fs, self._root = fsspec.core.url_to_fs(url)
        except (ValueError, ImportError) as error:
            raise ConfigError(
                f"run.storage: cannot use {url}: {error}; install what is named, or use shared or ray"
            ) from error

    def send(self, path: Path, digest: str) -> None:
        """Upload the content of a file unless it is there."""
        place = self._place("blobs", digest)
        if self._fs.exists(place) and self._fs.size(place) == path.stat().st_size:
            return
        self._fs.makedirs(self._place("blobs"), exist_ok=True)
        self._fs.put_file(str(path), place)

    def fetch(self, digest: str, path: Path) -> None:
        """Download a content; one that is damaged is removed, so that it is sent again."""
        place = self._place("blobs", digest)
        with atomic_path(path) as temporary:
            try:
                self._fs.get_file(place, str(temporary))
                _check(temporary, digest)
            except TransferError:
                self._fs.rm_file(place)
                raise
            except FileNotFoundError as error:
                raise TransferError(f"{place} is gone from the store") from error

    def publish(self, kind: str, job: str, files: Files) -> None:
        """Say which files belong to a job's result or checkpoint."""
        text = json.dumps({"checksum": fingerprint(files), "value": files})
        self._fs.makedirs(self._place(kind), exist_ok=True)
        self._fs.pipe_file(self._place(kind, f"{job}.json"), text.encode())

    def published(self, kind: str, job: str) -> Files | None:
        """Return what `publish` said, or None where nothing (or something damaged) is there."""
        try:
            data = json.loads(self._fs.cat_file(self._place(kind, f"{job}.json")))
            return dict(data["value"]) if data["checksum"] == fingerprint(data["value"]) else None
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def withdraw(self, kind: str, job: str) -> None:
        """Take back what was published, with its contents."""
        self.forget((self.published(kind, job) or {}).values())
        with suppress(FileNotFoundError):
            self._fs.rm_file(self._place(kind, f"{job}.json"))

    def forget(self, digests: Iterable[str]) -> None:
        """Remove contents that are of no more use."""
        for digest in digests:
            with suppress(FileNotFoundError):
                self._fs.rm_file(self._place("blobs", digest))

    def _place(self, *parts: str) -> str:
        return "/".join([self._root.rstrip("/"), *parts])


@dataclass(frozen=True)
class Answer:
    """What a worker sends back.

    Attributes:
        value: What was made of the job.
        files: What the job wrote.
        contents: Those files by digest, where no store holds them.
    """

    value: Any
    files: Files
    contents: dict[str, Content] = field(default_factory=dict)

    def unpack(self, directory: Path, depot: Depot | None = None) -> Any:
        """Put the files into the run directory, the result last, and return the value.

        Raises:
            TransferError: If a content is damaged or gone.
        """
        source = depot or MessageDepot(self.contents.__getitem__)
        for name, digest in sorted(self.files.items(), key=lambda item: item[0].endswith("result.json")):
            path = directory / _inside(name)
            if not (path.exists() and digest_of(path) == digest):
                source.fetch(digest, path)
        return self.value


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def study_key(directory: Path) -> str:
    """Return the random name under which a run directory's files travel; made at the first call."""
    path = directory / "transfer.json"
    if not path.exists():
        write_text(path, json.dumps({"key": uuid.uuid4().hex}))
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["key"])
    except (ValueError, KeyError, TypeError) as error:
        raise StudyError(f"{path} is damaged ({error}); remove it, files are then sent anew") from error


def list_files(directory: Path, names: Iterable[str]) -> Iterator[tuple[str, Path]]:
    """Yield (relative path, file) of existing files; a folder stands for all that is in it."""
    for name in names:
        place = directory / name
        for path in sorted(place.rglob("*")) if place.is_dir() else [place]:
            if path.is_file() and not path.name.startswith("."):
                yield path.relative_to(directory).as_posix(), path


def work_apart(
    evaluator: Any, job: Job, inputs: Files, *, run: Callable[[Any, Any, Path], Any], key: str, depot: Depot
) -> Answer:
    """Do a job in a folder of this node and say what it wrote.

    Args:
        evaluator: What `run` is called with.
        job: The job.
        inputs: What it reads.
        run: (evaluator, job, directory) -> value.
        key: Name of the study.
        depot: Where inputs come from and outputs go.

    Raises:
        ResourceError: If the node's temporary folder cannot be used.
        TransferError: If a content did not arrive whole.
    """
    scratch = _scratch(key)
    folder = scratch / "jobs" / job.fingerprint
    store = depot if isinstance(depot, UrlDepot) else None
    finished = store.published("jobs", job.fingerprint) if store else None
    begun = store.published("checkpoints", job.fingerprint) if store else None
    # Of a finished job only its result is of use here: `run` finds it and answers at once.
    results = {name: digest for name, digest in (finished or {}).items() if name.endswith("result.json")}
    for name, digest in inputs.items():
        _link(scratch / "blobs" / digest, digest, folder / _inside(name), depot)
    for name, digest in ((begun or {}) | results).items():
        _fetch_if_whole(digest, folder / _inside(name), depot)
    known = bool(results) and all((folder / name).exists() for name in results)
    with _mirrored(folder, job.fingerprint, None if known else store):
        value = run(evaluator, job, folder)
    files = finished if finished and known else _send_all(folder, inputs, depot)
    if store and not known:
        store.publish("jobs", job.fingerprint, files)
        store.withdraw("checkpoints", job.fingerprint)
    shutil.rmtree(folder, ignore_errors=True)
    return Answer(value, files, getattr(depot, "sent", {}))


def _send_all(folder: Path, inputs: Files, depot: Depot) -> Files:
    names = (path.name for path in sorted(folder.iterdir()))
    written = {name: path for name, path in list_files(folder, names) if name not in inputs}
    files = {}
    for name, path in written.items():
        files[name] = digest_of(path)
        depot.send(path, files[name])
    return files


def _link(blob: Path, digest: str, path: Path, depot: Depot) -> None:
    """Put an input at `path`; what several jobs of a node read is fetched once."""
    if not blob.exists():
        depot.fetch(digest, blob)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        os.link(blob, path)


def _fetch_if_whole(digest: str, path: Path, depot: Depot) -> None:
    """Put what an earlier attempt left at `path`; where it is damaged, that work is done again."""
    path.unlink(missing_ok=True)
    try:
        depot.fetch(digest, path)
    except TransferError as error:
        logger.warning("earlier work not used file=%s reason=%s", path.name, error)


@contextmanager
def _mirrored(folder: Path, job: str, store: UrlDepot | None) -> Iterator[None]:
    """Copy the job's checkpoints to the store while it runs."""
    if store is None:
        yield
        return
    done = threading.Event()
    mirror = _Mirror(folder, job, store)
    thread = threading.Thread(target=mirror.follow, args=(done,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        # What was saved on the way out, such as on a signal.
        mirror.try_copy()


@dataclass
class _Mirror:
    """Follows the checkpoint of a job; where the store fails, the job goes on without a copy."""

    folder: Path
    job: str
    store: UrlDepot
    sent: Files = field(default_factory=dict)
    seen: int = 0

    def follow(self, done: threading.Event) -> None:
        while not done.wait(_MIRROR_SECONDS):
            self.try_copy()

    def try_copy(self) -> None:
        """Send the checkpoint if it is new and the store answers."""
        try:
            self.copy()
        except Exception as error:  # each file system of fsspec raises its own kinds
            logger.warning("checkpoint not copied job=%s reason=%s", self.job, error)

    def copy(self) -> None:
        """Send the checkpoint if it is new."""
        path = RunDirectory(self.folder).job(self.job) / "checkpoint.safetensors"
        if not path.exists() or path.stat().st_mtime_ns == self.seen:
            return
        self.seen = path.stat().st_mtime_ns
        # A link is a snapshot: the next checkpoint replaces the file, it does not change it.
        snapshot = path.with_name(f".{path.name}.sent")
        snapshot.unlink(missing_ok=True)
        os.link(path, snapshot)
        before, now = dict(self.sent), {path.relative_to(self.folder).as_posix(): digest_of(snapshot)}
        if now != before:
            for digest in now.values():
                self.store.send(snapshot, digest)
            self.store.publish("checkpoints", self.job, now)
            self.store.forget(before.values())
            self.sent = now
        snapshot.unlink()


def _scratch(key: str) -> Path:
    """Return this node's folder of a study, which only this user may read."""
    base = Path(tempfile.gettempdir()) / f"mixopt-{os.getuid()}"
    with explained_errors(base):
        base.mkdir(mode=0o700, exist_ok=True)
    if base.is_symlink() or base.stat().st_uid != os.getuid():
        raise ResourceError(f"{base} belongs to someone else; set TMPDIR on this node to another folder")
    return base / key


def _inside(name: str) -> str:
    """Return a relative path that stays in its folder.

    Raises:
        TransferError: If it would not.
    """
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\0" in name:
        raise TransferError(f"a worker named the file {name!r}, which is outside the run directory; it is refused")
    return name


def _check(path: Path, digest: str) -> None:
    if digest_of(path) != digest:
        raise TransferError(f"content {digest[:12]} arrived damaged")
