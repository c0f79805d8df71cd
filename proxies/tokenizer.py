"""Tokenizers: one trained on all domains, or a user's own file, read the same way."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mixopt.errors import ConfigError
from mixopt.identity import file_fingerprint
from mixopt.storage import atomic_path, explained_errors

SEPARATOR = "<|doc|>"
_TRAINING_CHARS = 1_500_000


def train_tokenizer(domains: Mapping[str, Iterable[str]], vocab_size: int, path: Path) -> None:
    """Train a byte-level BPE on equal slices of all domains and save it.

    Args:
        domains: Documents per domain; the first 1.5 million characters of each are used.
        vocab_size: Tokens, the separator and the 256 bytes included.
        path: JSON file to write.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if vocab_size < 257:
        raise ConfigError(
            f"tokenizer.vocab_size: expected at least 257 (all bytes and the separator), got {vocab_size}"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[SEPARATOR],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((t for docs in domains.values() for t in _slice(docs)), trainer)
    with atomic_path(path) as temporary:
        tokenizer.save(str(temporary))


def _slice(documents: Iterable[str]) -> Iterator[str]:
    used = 0
    for document in documents:
        yield document[: _TRAINING_CHARS - used]
        used += len(document)
        if used >= _TRAINING_CHARS:
            return


class TextTokenizer:
    """A tokenizer file, and the token that separates documents.

    Raises:
        ConfigError: If the file is missing, damaged or has no separator token.
    """

    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise ConfigError(
                f"tokenizer.path: cannot read {path} ({error}); give a tokenizer.json of the tokenizers library"
            ) from error
        # Documents are kept whole, whatever the file was saved with.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.fingerprint = file_fingerprint(path)
        # Ids may have gaps; an id beyond the embedding would read another model of the stack.
        self.vocab_size = 1 + max(self._tokenizer.get_vocab().values())
        names = (SEPARATOR, "<|endoftext|>", "</s>", "<eos>", "<|end_of_text|>")
        ids = [self._tokenizer.token_to_id(name) for name in names]
        known = [i for i in ids if i is not None]
        if not known:
            raise ConfigError(f"tokenizer.path: {path} has none of the separator tokens {', '.join(names)}; add one")
        self.separator: int = known[0]

    @property
    def separator_text(self) -> str:
        """The separator token as text."""
        return str(self._tokenizer.id_to_token(self.separator))

    def encode(self, documents: Sequence[str]) -> list[Any]:
        """Return the library's encodings (ids and character offsets), no special tokens added."""
        return self._tokenizer.encode_batch(list(documents), add_special_tokens=False)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of tokens; bytes that are no text are replaced."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))

    def save_for_inference(self, path: Path) -> None:
        """Write a copy that begins every text with the separator, as training does."""
        from tokenizers import Tokenizer
        from tokenizers.processors import TemplateProcessing

        copy, name = Tokenizer.from_str(self._tokenizer.to_str()), self.separator_text
        copy.post_processor = TemplateProcessing(
            single=f"{name} $A", pair=f"{name} $A {name} $B", special_tokens=[(name, self.separator)]
        )
        with explained_errors(path):
            path.write_text(copy.to_str(pretty=True), encoding="utf-8")
