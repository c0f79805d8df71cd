"""The public set of runs that comes with mixopt, and any table beside the scores of its experts.

    builtin:runs/proxies.csv          the runs table
    builtin:runs/experts-0-top.zip    scores of its experts of seed 0 at the top rung, and others alike
    builtin:runs/merged.csv           what models merged from forked experts lose

What they are and how they were made is in the card, `experiments/runs/README.md`.
"""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import numpy as np

from mixopt.config import BUILTIN
from mixopt.errors import ConfigError
from mixopt.identity import fingerprint
from mixopt.mde import MDE
from mixopt.passages import TEXT
from mixopt.runs_table import RunsTable
from mixopt.scores_folder import load_scores
from mixopt.storage import free_bytes

from .benchmarks import Ground

RUNS = "runs"


def resolve(path: Path) -> Path:
    """Return a path as it is, or where what `builtin:runs/...` names lies.

    Raises:
        ConfigError: If there is no such built-in file.
    """
    text = str(path)
    if not text.startswith(BUILTIN):
        return path
    found = Path(__file__).parent / text.removeprefix(BUILTIN)
    if not text.removeprefix(BUILTIN).startswith(RUNS) or not found.exists():
        known = sorted(p.name for p in (Path(__file__).parent / RUNS).glob("*"))
        raise ConfigError(f"no built-in runs at {text}; there are {', '.join(f'{BUILTIN}{RUNS}/{n}' for n in known)}")
    return found


def ground(table: RunsTable, columns: Iterable[str], scores: Path, fidelity: str, seed: int | None = None) -> Ground:
    """Return a table with what the scores of its experts predict.

    Args:
        table: Finished runs.
        columns: What is minimized; tasks that are not among it are left out.
        scores: A scores folder, a run directory that has one, or a zipped one.
        fidelity: Rung of the experts.
        seed: Of the experts, where there are several.

    Raises:
        StudyError: If scores are missing, damaged or do not belong together.
        MixtureError: If they are of other domains.
    """
    used = set(columns)
    known = load_scores(scores_folder(scores), table.domains, fidelity=fidelity, seed=seed)
    mde = MDE(table.domains, [s for s in known if s.passages.kind == TEXT or used.intersection(s.passages.columns)])
    # What an optimizer sees of the scores are predictions of the pool's mixtures.
    content = fingerprint([mde.columns, np.round(mde.predict(np.unique(table.weights, axis=0)), 9).tolist()])
    return Ground(table, mde, content, fidelity)


def scores_folder(path: Path) -> Path:
    """Return the scores folder that a path stands for: itself, that of a run directory, or an unpacked zip file.

    Raises:
        ConfigError: If there is nothing, or the zip file is damaged.
    """
    found = resolve(path)
    if found.is_file():
        return Path(_unpacked(found.absolute()).name)
    return found / "scores" if (found / "scores").is_dir() else found


def _check_members(path: Path, archive: zipfile.ZipFile) -> None:
    """Refuse an archive whose members lead out of their folder or do not fit on the disk."""
    out = [name for name in archive.namelist() if name.startswith(("/", "\\")) or ".." in Path(name).parts]
    size, free = sum(member.file_size for member in archive.infolist()), free_bytes(Path(tempfile.gettempdir()))
    if out or size > free:
        what = f"a member {out[0]!r} outside its folder" if out else f"{size:,} bytes, {free:,} are free"
        raise ConfigError(f"{path}: expected a zipped scores folder, got {what}; correct the path")


@cache
def _unpacked(path: Path) -> tempfile.TemporaryDirectory[str]:
    """Unpack a zip file for as long as this process lives."""
    folder = tempfile.TemporaryDirectory(prefix="mixopt-scores-")
    try:
        with zipfile.ZipFile(path) as archive:
            _check_members(path, archive)
            archive.extractall(folder.name)  # nosec B202: every member was looked at
    except (zipfile.BadZipFile, OSError) as error:
        raise ConfigError(
            f"{path}: expected a scores folder, a run directory or a zipped scores folder ({error}); correct the path"
        ) from error
    return folder
