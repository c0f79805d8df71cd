"""The structure of evaluation sets: where documents and options begin, and which answers are right.

What is needed to make losses and accuracies of cached token log-probabilities, without
text or tokenizer. Lies beside the scores, one small file per evaluation set.

    T tokens of one set, D documents or options, Q questions
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .errors import StudyError
from .storage import atomic_path

TEXT, MULTIPLE_CHOICE = "text", "multiple_choice"
FEWEST_TOKENS = 1000
"""A mean over fewer is mostly sampling noise: token losses spread by about 2 nats, so it is off by 0.06."""

Integers = NDArray[np.int64]


def _no_integers() -> Integers:
    return np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Passages:
    """The structure of an evaluation set, without its text.

    Attributes:
        name: Of the evaluation set.
        offsets: (D + 1,) first token of each document, or of each option; the last entry is T.
        fingerprint: Content hash of text, tokenizer and selection.
        kind: `text` or `multiple_choice`.
        num_bytes: UTF-8 bytes of the tokens that the loss is the mean over.
        num_options: (Q,) options per question, in the order of the options.
        answers: (Q,) place of the right option within its question.

    Raises:
        StudyError: If these do not fit together, or an option has no tokens.
    """

    name: str
    offsets: Integers
    fingerprint: str = ""
    kind: str = TEXT
    num_bytes: int = 0
    num_options: Integers = field(default_factory=_no_integers)
    answers: Integers = field(default_factory=_no_integers)

    def __post_init__(self) -> None:
        for name in ("offsets", "num_options", "answers"):
            array = np.array(getattr(self, name), dtype=np.int64)
            array.flags.writeable = False
            object.__setattr__(self, name, array)
        lengths = np.diff(self.offsets)
        if self.kind not in (TEXT, MULTIPLE_CHOICE) or not len(lengths) or self.offsets[0] or lengths.min() < 0:
            raise StudyError(
                f"{self.name}: expected text or multiple_choice with offsets that rise from 0, got {self.kind} with "
                f"{self.offsets[:4].tolist()}...; save the evaluation set again"
            )
        if self.kind == MULTIPLE_CHOICE:
            self._check_questions(lengths)

    def _check_questions(self, lengths: Integers) -> None:
        if len(self.num_options) != len(self.answers) or self.num_options.sum() != len(lengths):
            raise StudyError(
                f"{self.name}: expected options and answers of the same questions, got {len(self.answers)} answers and "
                f"{len(lengths)} options for counts that sum to {self.num_options.sum()}; save the task again"
            )
        wrong = (self.num_options < 2) | (self.answers < 0) | (self.answers >= self.num_options)
        if wrong.any():
            q = int(wrong.argmax())
            raise StudyError(
                f"{self.name}: question {q + 1} has {self.num_options[q]} options and answer {self.answers[q]}, expected "
                "two or more and a place among them; correct the task"
            )
        if not lengths.min():
            option = int(lengths.argmin())
            q = int(np.searchsorted(self.first_options, option, side="right")) - 1
            raise StudyError(
                f"{self.name}: option {option - self.first_options[q]} of question {q + 1} has no tokens, so it has no "
                "likelihood per token; fill or remove it"
            )

    @classmethod
    def of_text(cls, name: str, num_tokens: int) -> Passages:
        """Describe a text that is a single document."""
        return cls(name, np.array([0, num_tokens]))

    @property
    def num_tokens(self) -> int:
        """T."""
        return int(self.offsets[-1])

    @property
    def first_options(self) -> Integers:
        """(Q,) place of each question's first option among all D."""
        return np.asarray(np.cumsum(self.num_options) - self.num_options)

    @property
    def right_options(self) -> Integers:
        """(Q,) place of each question's right option among all D."""
        return np.asarray(self.first_options + self.answers)

    @property
    def counted(self) -> NDArray[np.bool_] | None:
        """(T,) which tokens the loss is the mean over: of a task the right options'; None for all."""
        if self.kind == TEXT:
            return None
        right = np.zeros(len(self.offsets) - 1, dtype=bool)
        right[self.right_options] = True
        return np.asarray(np.repeat(right, np.diff(self.offsets)))

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the runs table: `loss/<name>`, and of a task also `score/<name>`."""
        loss = f"loss/{self.name}"
        return (loss,) if self.kind == TEXT else (loss, f"score/{self.name}")


def passages_path(folder: Path, fingerprint: str) -> Path:
    """Return where the structure of an evaluation set lies in a scores folder."""
    return folder / f"{fingerprint}.set.npz"


def save_passages(folder: Path, passages: Passages) -> None:
    """Write the structure of an evaluation set, unless it is there.

    Raises:
        ResourceError: If it cannot be written.
    """
    path = passages_path(folder, passages.fingerprint)
    if path.exists() and read_passages(path) is not None:
        return
    with atomic_path(path) as temporary, temporary.open("w+b") as file:
        np.savez_compressed(
            file, name=passages.name, kind=passages.kind, num_bytes=passages.num_bytes, offsets=passages.offsets,
            num_options=passages.num_options, answers=passages.answers,
        )  # fmt: skip


def read_passages(path: Path) -> Passages | None:
    """Return what `save_passages` wrote, or None where it is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as data:
            return Passages(
                str(data["name"]), data["offsets"], path.name.removesuffix(".set.npz"), str(data["kind"]),
                int(data["num_bytes"]), data["num_options"], data["answers"],
            )  # fmt: skip
    except Exception:  # zip, zlib and numpy each raise their own kinds for damaged files
        return None
