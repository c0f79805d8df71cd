"""From sources to token shards: what a study trains and is measured on.

Builds, once, the tokenizer (frozen at a study's first run), one shard per domain and
one per evaluation set. Held-out documents are chosen by the hash of their text, so
they stay held out when a domain grows.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from mixopt.errors import ConfigError
from mixopt.identity import file_fingerprint
from mixopt.mixture import Domain
from mixopt.objective import EvalSet
from mixopt.storage import atomic_path, read_json, write_json

from .overlap import Overlap, overlaps
from .questions import KIND as MULTIPLE_CHOICE
from .questions import TaskShard, TaskSource, evenly
from .text import TextSource
from .tokenizer import TextTokenizer, train_tokenizer
from .tokens import TokenShard, is_whole, spread

logger = logging.getLogger(__name__)

# Enough to choose an evaluation set from; more would only fill memory.
_MOST_HELD_OUT = 4000
# Templates and quotations are shared by text of one kind: up to 8% in the built-in corpus.
_MOST_OVERLAP = 0.1


@dataclass(frozen=True)
class DomainText:
    """A domain's sources.

    Attributes:
        train: Training documents.
        validation: Held-out documents, or None to set some of `train` aside.
        holdout: Share of documents set aside when `validation` is None.
    """

    train: TextSource
    validation: TextSource | None
    holdout: float

    def training(self) -> Iterator[str]:
        """Yield the documents to train on."""
        documents = self.train.documents()
        return documents if self.validation else (d for d in documents if not self._held_out(d))

    def heldout(self) -> Iterator[str]:
        """Yield the documents to measure on."""
        return self.validation.documents() if self.validation else filter(self._held_out, self.train.documents())

    def _held_out(self, document: str) -> bool:
        digest = hashlib.sha256(document.encode()).digest()
        return int.from_bytes(digest[:8], "big") < self.holdout * 2**64


@dataclass(frozen=True)
class PreparedText:
    """Token shards of a study, on disk.

    Attributes:
        domains: K domains with sizes.
        eval_sets: Each domain's held-out set, then the further ones.
        shards: {domain: folder name under the root}.
        eval_shards: {evaluation set: folder name under the root}.
        tokenizer: Fingerprint of the tokenizer.
        vocab_size: Its tokens.
    """

    domains: tuple[Domain, ...]
    eval_sets: tuple[EvalSet, ...]
    shards: Mapping[str, str]
    eval_shards: Mapping[str, str]
    tokenizer: str
    vocab_size: int


def prepare_text(
    domains: Mapping[str, DomainText],
    eval_sets: Mapping[str, TextSource | TaskSource],
    root: Path,
    *,
    vocab_size: int,
    tokenizer_path: Path | None,
    eval_tokens: int,
    domain_eval_tokens: int,
    eval_questions: int,
    sequence_length: int,
    progress: Callable[[str], None] = lambda _: None,
) -> PreparedText:
    """Tokenize everything a study needs, or reuse what is there.

    Args:
        domains: Training text by domain, in the study's order.
        eval_sets: Further evaluation sets and tasks.
        root: Folder of tokenizer and shards.
        vocab_size: Of a tokenizer trained here.
        tokenizer_path: Tokenizer file to use instead, or None.
        eval_tokens: Tokens per further evaluation set.
        domain_eval_tokens: Tokens per held-out set.
        eval_questions: Questions per task.
        sequence_length: Least tokens a domain must have.
        progress: Told what is being done.

    Raises:
        ConfigError: Naming the field, when text is missing, unreadable or too short.
    """
    # Fingerprints read every file, so bad paths are found before anything is written.
    keys = {name: _domain_key(text) for name, text in domains.items()}
    eval_keys = {name: {"source": source.fingerprint()} for name, source in eval_sets.items()}
    tokenizer = _tokenizer(domains, root, vocab_size, tokenizer_path, progress)
    build = _Builder(root, tokenizer, progress)
    train = {name: build.train(name, text, keys[name], sequence_length) for name, text in domains.items()}
    measured = {
        **{name: build.sample(name, text.heldout, keys[name], domain_eval_tokens) for name, text in domains.items()},
        **{
            name: build.task(name, source, eval_questions)
            if isinstance(source, TaskSource)
            else build.sample(name, source.documents, eval_keys[name], eval_tokens)
            for name, source in eval_sets.items()
        },
    }
    progress("compare evaluation with training text")
    _warn_of_overlap(overlaps(measured, train, tokenizer, root))
    return PreparedText(
        tuple(
            Domain(name, *(s.meta[key] for key in ("num_tokens", "num_docs", "num_bytes", "fingerprint")))
            for name, s in train.items()
        ),
        tuple(
            EvalSet(
                name,
                s.meta["num_tokens"],
                s.meta["num_bytes"],
                s.meta.get("kind", "text"),
                s.meta["fingerprint"],
                s.meta.get("num_questions", 0),
                s.meta.get("chance", 0.0),
            )
            for name, s in measured.items()
        ),
        {name: shard.path.name for name, shard in train.items()},
        {name: shard.path.name for name, shard in measured.items()},
        tokenizer.fingerprint,
        tokenizer.vocab_size,
    )


@dataclass(frozen=True)
class _Builder:
    root: Path
    tokenizer: TextTokenizer
    progress: Callable[[str], None]

    def train(self, name: str, text: DomainText, key: Mapping[str, object], sequence_length: int) -> TokenShard:
        documents = self._announced(text.training(), f"tokenize {name}")
        shard = TokenShard.build(self.root, name, documents, tokenizer=self.tokenizer, key={**key, "part": "train"})
        if shard.meta["num_tokens"] < sequence_length:
            raise ConfigError(
                f"domains.{name}: {shard.meta['num_tokens']} training tokens, fewer than one sequence "
                f"(proxy.sequence_length {sequence_length}); add text, merge it into another domain or drop it"
            )
        return shard

    def _announced(self, documents: Iterator[str], what: str) -> Iterator[str]:
        """Say what is being done once it is done: shards that are there read no documents."""
        self.progress(what)
        yield from documents

    def task(self, name: str, source: TaskSource, default: int) -> TaskShard:
        num = source.most or default
        key = {"source": source.fingerprint(), "part": MULTIPLE_CHOICE, "questions": num}
        self.progress(f"tokenize questions {name}")
        questions = list(evenly(source.questions(), num))
        return TaskShard.build_task(self.root, f"eval-{name}", questions, tokenizer=self.tokenizer, key=key)

    def sample(
        self, name: str, documents: Callable[[], Iterator[str]], key: Mapping[str, object], num_tokens: int
    ) -> TokenShard:
        identity = {**key, "part": "eval", "tokens": num_tokens}
        known = read_json(self.root / "eval.json") or {}
        found = known.get(f"{name}/{self.tokenizer.fingerprint}")
        if found and found["identity"] == identity and is_whole(self.root / found["folder"]):
            return TokenShard(self.root / found["folder"])
        pool = list(islice(self._announced(documents(), f"choose evaluation text {name}"), _MOST_HELD_OUT))
        if not pool:
            raise ConfigError(
                f"domains.{name}: no document could be held out for measuring; give validation: {{path: ...}} or raise holdout"
            )
        chosen, per_document = spread(pool, num_tokens, self.tokenizer)
        shard = TokenShard.build(
            self.root, f"eval-{name}", chosen, tokenizer=self.tokenizer, key={**identity, "max_tokens": per_document}
        )
        known[f"{name}/{self.tokenizer.fingerprint}"] = {"identity": identity, "folder": shard.path.name}
        write_json(self.root / "eval.json", known)
        return shard


def _warn_of_overlap(found: Mapping[tuple[str, str], Overlap]) -> None:
    """Name the sets of which whole documents are trained on: a loss on them measures memory."""
    for (name, domain), overlap in found.items():
        if max(overlap.share, overlap.documents) > _MOST_OVERLAP:
            logger.warning(
                "evaluation set %s overlaps the training text of %s: %.0f%% of its documents and %.0f%% of its passages "
                "are in both, such as %s; leave them out of one of the two",
                name,
                domain,
                100 * overlap.documents,
                100 * overlap.share,
                " | ".join(repr(example) for example in overlap.examples),
            )


def _domain_key(text: DomainText) -> dict[str, object]:
    validation = text.validation.fingerprint() if text.validation else text.holdout
    return {"source": text.train.fingerprint(), "validation": validation}


def _tokenizer(
    domains: Mapping[str, DomainText], root: Path, vocab_size: int, given: Path | None, progress: Callable[[str], None]
) -> TextTokenizer:
    path = root / "tokenizer.json"
    if given is not None and not given.is_file():
        raise ConfigError(
            f"tokenizer.path: no file at {given}; correct the path or drop the field to train a tokenizer"
        )
    request = {"file": file_fingerprint(given)} if given else {"vocab_size": vocab_size}
    known = read_json(root / "tokenizer.request.json")
    if known is None:
        progress("train the tokenizer" if given is None else "copy the tokenizer")
        if given is None:
            train_tokenizer({name: text.training() for name, text in domains.items()}, vocab_size, path)
        else:
            TextTokenizer(given)
            with atomic_path(path) as temporary:
                shutil.copyfile(given, temporary)
        write_json(root / "tokenizer.request.json", request)
    elif known != request:
        raise ConfigError(
            f"tokenizer: the run directory was made with {known}, the study file asks for {request}; "
            "a tokenizer is frozen at the first run, so change it back or choose another --dir"
        )
    return TextTokenizer(path)
