"""Expert scores on disk: token log-probabilities of data experts, and what they were measured on.

A scores folder holds three kinds of files, in a run directory or anywhere else:

    <key>.npy                   (T,) token log-probabilities of one expert on one evaluation set
    <key>.json                  its card: whose they are, on what text, and a checksum
    <fingerprint>.set.npz       the evaluation set: where its documents or options begin

One pair per (expert, evaluation set), so a further expert or set rewrites nothing.
`scores_folder.py` opens and checks a folder.

    K experts (= domains), T tokens of one set
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .errors import StudyError
from .passages import TEXT, Passages
from .storage import save_array, write_json

_KINDS = ("float32", "float16")

Scores = NDArray[np.float32] | NDArray[np.float16]


class TokenScores(Protocol):
    """T token log-probabilities of which a part is read at a time: an array, or a `ScoreFile`."""

    def __len__(self) -> int:
        """T."""

    def __getitem__(self, part: slice, /) -> NDArray[Any]:
        """Return the part as an array."""


@dataclass(frozen=True)
class ScoreCard:
    """Whose log-probabilities an array holds, and on what.

    Attributes:
        domain: Domain of the data expert.
        trial: Id of its trial.
        fidelity: Rung it was trained at.
        seed: Its random seed.
        expert: Content hash of what it was trained with.
        tokenizer: Fingerprint of the tokenizer.
        eval_set: Name of the evaluation set.
        eval_fingerprint: Fingerprint of the evaluation set.
        kind: `text` or `multiple_choice`.
        dtype: `float32`, or `float16` for a thinned copy.
        checksum: First 16 hex digits of the SHA-256 of the array's bytes.
    """

    domain: str
    trial: str
    fidelity: str
    seed: int
    expert: str
    tokenizer: str
    eval_set: str
    eval_fingerprint: str
    kind: str = TEXT
    dtype: str = ""
    checksum: str = ""

    @property
    def owner(self) -> str:
        """The expert in words."""
        return f"expert {self.trial} ({self.domain}, rung {self.fidelity}, seed {self.seed}, content {self.expert})"


@dataclass(frozen=True)
class ScoreFile:
    """An array on disk of which only the asked-for part is mapped, so memory stays flat.

    Attributes:
        path: The .npy file.
        dtype: Of its elements.
        start: Bytes before the first element.
        length: T.
    """

    path: Path
    dtype: np.dtype[Any]
    start: int
    length: int

    @classmethod
    def open(cls, path: Path) -> ScoreFile:
        """Read the header of a file.

        Raises:
            StudyError: If it is missing, cut off or no array of log-probabilities.
        """
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            if array.ndim != 1 or array.dtype.name not in _KINDS or not len(array):
                raise ValueError(f"it holds {array.dtype} of shape {array.shape}")
        except Exception as error:  # numpy parses the header as Python and lets any error of that through
            raise StudyError(
                f"expert scores {path} are missing or damaged ({error}); score the expert again"
            ) from error
        return cls(path, array.dtype, int(array.offset), len(array))

    def __len__(self) -> int:
        """T."""
        return self.length

    def __getitem__(self, part: slice, /) -> NDArray[Any]:
        """Map a part of the file; it is unmapped when the part is no longer used."""
        begin, end, _ = part.indices(self.length)
        start = self.start + begin * self.dtype.itemsize
        try:
            return np.memmap(self.path, self.dtype, mode="r", offset=start, shape=(end - begin,))
        except (OSError, ValueError) as error:
            raise StudyError(
                f"expert scores {self.path} are gone or were cut ({error}); score the expert again"
            ) from error


@dataclass(frozen=True, eq=False)
class ExpertScores:
    """Token log-probabilities of K experts on one evaluation set.

    Attributes:
        passages: The evaluation set.
        domains: K names, in the order of the arrays.
        logprobs: K arrays (T,) float32 or float16, nats.

    Raises:
        StudyError: If the lengths do not agree.
    """

    passages: Passages
    domains: tuple[str, ...]
    logprobs: tuple[TokenScores, ...]

    def __post_init__(self) -> None:
        if len(self.logprobs) != len(self.domains):
            raise StudyError(
                f"{self.passages.name}: expected scores of {len(self.domains)} experts, got {len(self.logprobs)}; "
                "train or score the missing ones"
            )
        for name, array in zip(self.domains, self.logprobs, strict=True):
            if len(array) != self.num_tokens or not len(array):
                raise StudyError(
                    f"{self.passages.name}: expected {self.num_tokens} tokens, got {len(array)} of the expert of {name}; "
                    "score the experts again"
                )

    @property
    def num_tokens(self) -> int:
        """T."""
        return self.passages.num_tokens


def save_scores(folder: Path, key: str, logprobs: Scores, card: ScoreCard) -> None:
    """Write the log-probabilities of an expert on an evaluation set, then their card.

    Args:
        folder: The scores folder.
        key: Name of both files; a content hash of expert and evaluation set.
        logprobs: (T,) nats.
        card: Whose they are; its dtype and checksum are filled in here.

    Raises:
        ResourceError: If they cannot be written.
    """
    save_array(folder / f"{key}.npy", logprobs)
    digest = hashlib.sha256(np.ascontiguousarray(logprobs).data)
    card = replace(card, dtype=logprobs.dtype.name, checksum=digest.hexdigest()[:16])
    write_json(card_path(folder, key), asdict(card))


def card_path(folder: Path, key: str) -> Path:
    """Return where the card of an array lies in a scores folder."""
    return folder / f"{key}.json"
