"""Multiple-choice tasks: questions out of files, and their options as a token shard.

Every option is a document of the shard: the question's context, then the option, of
which only the option is scored. The right option is the one that a model finds likeliest
per token (length-normalized log-probability; Brown et al. 2020, arXiv:2005.14165, Section 2.4).

    Q questions, D options of all questions
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixopt.errors import ConfigError
from mixopt.identity import fingerprint
from mixopt.passages import MULTIPLE_CHOICE, Passages
from mixopt.storage import save_array, write_json

from .text import TextSource
from .tokenizer import TextTokenizer
from .tokens import TokenShard, checksums, is_whole

KIND = MULTIPLE_CHOICE


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        context: What stands before each option; may be empty.
        options: Two or more, none of them empty.
        answer: Place of the right one.
    """

    context: str
    options: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class TaskSource:
    """Where questions come from.

    Attributes:
        source: Files or hub data set; its `text` column holds the context.
        options: Column with the list of options.
        answer: Column with the right option: its number from 0, or its text.
        most: Questions to use, or None for the number that holds for all tasks.
    """

    source: TextSource
    options: str = "options"
    answer: str = "answer"
    most: int | None = None

    def fingerprint(self) -> str:
        """Return the hash of the files' bytes and of what is read from them."""
        return fingerprint([KIND, self.source.fingerprint(), self.options, self.answer])

    def questions(self) -> list[Question]:
        """Return all questions in file order.

        Raises:
            ConfigError: Naming the row, when a column is missing or a question has no use.
        """
        found = [self._question(number, row) for number, row in enumerate(self.source.rows(), 1)]
        if not found:
            raise ConfigError(f"{self.source.field}: {self._place} holds no question; fill it or drop it")
        return found

    @property
    def _place(self) -> str | None:
        return self.source.path or self.source.hub

    def _question(self, number: int, row: Mapping[str, Any]) -> Question:
        for column in (self.options, self.answer):
            if column not in row:
                raise ConfigError(
                    f"{self.source.field}: no column {column!r} in {self._place}; it has {', '.join(sorted(row))}"
                )
        where, options, answer = f"{self.source.field}: question {number}", row[self.options], row[self.answer]
        if not isinstance(options, list) or len(options) < 2 or not all(isinstance(o, str) for o in options):
            raise ConfigError(f"{where} has options {options!r}, expected a list of two or more texts; correct it")
        empty = [place for place, option in enumerate(options) if not option.strip()]
        if empty:
            raise ConfigError(f"{where} has nothing in option {empty[0]}; fill or remove the option")
        if isinstance(answer, str) and options.count(answer) == 1:
            answer = options.index(answer)
        if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(options):
            raise ConfigError(
                f"{where} has answer {answer!r}, expected a number from 0 to {len(options) - 1} or one of its options; correct it"
            )
        return Question(str(row.get(self.source.text) or ""), tuple(options), answer)


@dataclass(frozen=True)
class TaskShard(TokenShard):
    """Options of a task on disk: a token shard whose documents have a part that is not scored.

    Attributes:
        path: Folder as of a token shard, with starts.npy, num_options.npy and answers.npy besides.
    """

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """(D,) tokens of context before each option."""
        return self._load("starts.npy")

    @cached_property
    def num_options(self) -> NDArray[np.int64]:
        """(Q,) options per question."""
        return self._load("num_options.npy")

    @cached_property
    def answers(self) -> NDArray[np.int64]:
        """(Q,) place of the right option."""
        return self._load("answers.npy")

    @classmethod
    def build_task(
        cls, root: Path, name: str, questions: Sequence[Question], *, tokenizer: TextTokenizer, key: Mapping[str, Any]
    ) -> TaskShard:
        """Tokenize questions into a shard, or reuse the one that is there; see `TokenShard.build`."""
        identity = fingerprint({"tokenizer": tokenizer.fingerprint, **key})
        shard = cls(root / f"{name}-{identity}")
        if not is_whole(shard.path):
            shard._write_questions(questions, tokenizer, identity)
        return shard

    def _write_questions(self, questions: Sequence[Question], tokenizer: TextTokenizer, identity: str) -> None:
        dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
        options = [(q.context, option) for q in questions for option in q.options]
        # Context and option are tokenized apart, so that no token holds some of both.
        contexts = [e.ids for e in tokenizer.encode([context for context, _ in options])]
        texts = [joined(context, option) for context, option in options]
        scored = [e.ids for e in tokenizer.encode(texts)]
        num_options = np.array([len(q.options) for q in questions])
        answers = np.array([q.answer for q in questions])
        right = np.cumsum(num_options) - num_options + answers
        lengths = [len(c) + len(s) for c, s in zip(contexts, scored, strict=True)]
        arrays = {
            "tokens": np.fromiter(chain.from_iterable(map(chain, contexts, scored)), dtype),
            "offsets": np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            "starts": np.array([len(c) for c in contexts]),
            "num_options": num_options,
            "answers": answers,
        }
        for file, array in arrays.items():
            save_array(self.path / f"{file}.npy", array)
        meta = {
            "kind": KIND,
            "num_questions": len(questions),
            "chance": float(np.mean(1 / num_options)),
            "num_docs": len(options),
            # Of the right options: what the loss of a task is the mean over.
            "num_tokens": sum(len(scored[i]) for i in right),
            "num_bytes": sum(len(texts[i].encode()) for i in right),
        }
        write_json(
            self.path / "meta.json",
            {**meta, "separator": tokenizer.separator, "fingerprint": identity, **checksums(self.path)},
        )


def passages(name: str, shard: TokenShard) -> Passages:
    """Return the structure of an evaluation set, of its scored tokens only."""
    meta = shard.meta
    if not isinstance(shard, TaskShard):
        return Passages(name, shard.offsets, meta["fingerprint"], num_bytes=meta["num_bytes"])
    offsets = np.concatenate([[0], np.cumsum(np.diff(shard.offsets) - shard.starts)])
    return Passages(
        name, offsets, meta["fingerprint"], KIND, meta["num_bytes"], shard.num_options, shard.answers
    )  # fmt: skip


def joined(context: str, option: str) -> str:
    """Return an option as it follows its context: after a space, unless one is there."""
    return option if not context or context[-1].isspace() or option[0].isspace() else f" {option}"


def open_shard(path: Path) -> TokenShard:
    """Return the shard of an evaluation set, of either kind."""
    shard = TokenShard(path)
    return TaskShard(path) if shard.meta.get("kind") == KIND else shard


def evenly(questions: Sequence[Question], num: int) -> Iterator[Question]:
    """Yield up to `num` questions, evenly spread."""
    count = min(num, len(questions))
    return (questions[(2 * i + 1) * len(questions) // (2 * count)] for i in range(count))
