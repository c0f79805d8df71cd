"""Opening a folder of expert scores: which files fit together, and whether they can be used.

The checks read every array once, in blocks, and remember nothing. What does not fit
is refused with both sides named: no scores are better than wrong ones.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from .errors import MixtureError, StudyError
from .passages import FEWEST_TOKENS, passages_path, read_passages
from .scores import ExpertScores, ScoreCard, ScoreFile, card_path
from .storage import read_json

logger = logging.getLogger(__name__)

_BLOCK_TOKENS = 1 << 20
_POSITIVE = 1e-5  # nats: rounding of a log-softmax in single precision


def load_scores(
    folder: Path,
    domains: Sequence[str],
    *,
    fidelity: str | None = None,
    seed: int | None = None,
    eval_sets: Sequence[str] | None = None,
    keys: Sequence[str] | None = None,
) -> tuple[ExpertScores, ...]:
    """Open the scores of one expert per domain on each evaluation set, and check them.

    Experts of other domains in the folder are left aside: their weight is 0.

    Args:
        folder: A scores folder.
        domains: K names, the order of the mixture weights.
        fidelity: Only experts of this rung; needed if there are several per domain.
        seed: Only experts of this seed; likewise.
        eval_sets: Names of the sets to open, in this order; None for all, by name.
        keys: Only these files, as a run directory's index of experts lists them; None for all.

    Returns:
        One entry per evaluation set, with mapped files.

    Raises:
        MixtureError: If the folder knows no expert of some domain.
        StudyError: If scores are missing or damaged, or of different experts, tokenizers
            or evaluation texts; the message names both sides.
    """
    found = _find(folder, keys)
    _check_domains(folder, domains, [card for _, card in found])
    asked = f"rung {fidelity or 'any'}, seed {'any' if seed is None else seed}"
    fits = [
        (key, card)
        for key, card in found
        if card.domain in domains and fidelity in (None, card.fidelity) and seed in (None, card.seed)
    ]
    missing = [name for name in domains if name not in {card.domain for _, card in fits}]
    if missing:
        raise StudyError(f"no expert of {', '.join(missing)} in {folder} ({asked}); train and score it")
    names = sorted({card.eval_set for _, card in fits}) if eval_sets is None else list(eval_sets)
    chosen = [(key, card) for key, card in fits if card.eval_set in names]
    _check_agreement([card for _, card in chosen], folder)
    return tuple(_open_set(folder, name, domains, [c for c in chosen if c[1].eval_set == name]) for name in names)


def sound_scores(folder: Path, key: str) -> bool:
    """Whether an array, its card and its evaluation set are there and whole; reads the array once."""
    try:
        card = ScoreCard(**(read_json(card_path(folder, key)) or {}))
        _check_content(ScoreFile.open(folder / f"{key}.npy"), card)
    except (StudyError, TypeError):
        return False
    return read_passages(passages_path(folder, card.eval_fingerprint)) is not None


def _find(folder: Path, keys: Sequence[str] | None) -> list[tuple[str, ScoreCard]]:
    if not folder.is_dir():
        raise StudyError(f"no folder of expert scores at {folder}; correct the path, or train and score the experts")
    paths = sorted(folder.glob("*.json")) if keys is None else [card_path(folder, key) for key in keys]
    cards = []
    for path in paths:
        card = read_json(path)
        if card is None:
            raise StudyError(f"the card {path} of expert scores is missing or damaged; score the expert again")
        try:
            cards.append((path.stem, ScoreCard(**card)))
        except TypeError as error:
            raise StudyError(f"{path} is no card of expert scores ({error}); move it out of the folder") from error
    return cards


def _open_set(folder: Path, name: str, domains: Sequence[str], found: Sequence[tuple[str, ScoreCard]]) -> ExpertScores:
    by_domain = {card.domain: (key, card) for key, card in found}
    missing = [domain for domain in domains if domain not in by_domain]
    if missing:
        raise StudyError(
            f"{name}: no scores of the experts of {', '.join(missing)} in {folder}; score them, or leave {name} out"
        )
    path = passages_path(folder, found[0][1].eval_fingerprint)
    passages = read_passages(path)
    if passages is None:
        raise StudyError(f"{name}: {path} is missing or damaged; score the experts again")
    files = {domain: ScoreFile.open(folder / f"{by_domain[domain][0]}.npy") for domain in domains}
    scores = ExpertScores(replace(passages, name=name), tuple(domains), tuple(files.values()))
    for domain, file in files.items():
        _check_content(file, by_domain[domain][1])
    if scores.num_tokens < FEWEST_TOKENS:
        logger.warning(
            "eval set small name=%s tokens=%d; under %d tokens a mean loss is mostly noise",
            name, scores.num_tokens, FEWEST_TOKENS,
        )  # fmt: skip
    return scores


def _check_domains(folder: Path, domains: Sequence[str], cards: Sequence[ScoreCard]) -> None:
    known = sorted({card.domain for card in cards})
    unknown = [name for name in domains if name not in known]
    if known and unknown:
        raise MixtureError(
            f"the mixtures are over {', '.join(domains)}, but {folder} holds scores of experts of {', '.join(known)}: "
            f"none of {', '.join(unknown)}; use scores of the same domains, or train the missing experts"
        )


def _check_agreement(cards: Sequence[ScoreCard], folder: Path) -> None:
    """Refuse cards of two tokenizers, two texts of one evaluation set, two experts of one domain, or two rungs."""
    for what, group, value in (
        ("tokenizers", "", "tokenizer"),
        ("texts", "eval_set", "eval_fingerprint"),
        ("experts", "domain", "expert"),
        ("rungs", "", "fidelity"),
    ):
        first: dict[str, ScoreCard] = {}
        for card in cards:
            key = str(getattr(card, group)) if group else ""
            other = first.setdefault(key, card)
            if getattr(other, value) != getattr(card, value):
                raise StudyError(
                    f"{folder} mixes {what}{f' of {key}' if key else ''}: {other.owner} on {other.eval_set} has {value} "
                    f"{getattr(other, value)}, {card.owner} on {card.eval_set} has {getattr(card, value)}; choose with "
                    "fidelity or seed, or score the experts again"
                )


def _check_content(file: ScoreFile, card: ScoreCard) -> None:
    digest, wrong = hashlib.sha256(), dict.fromkeys(("NaN", "-inf", "positive"), 0)
    for begin in range(0, len(file), _BLOCK_TOKENS):
        block = np.asarray(file[begin : begin + _BLOCK_TOKENS])
        digest.update(np.ascontiguousarray(block).data)
        wrong["NaN"] += int(np.isnan(block).sum())
        wrong["-inf"] += int(np.isneginf(block).sum())
        wrong["positive"] += int((block > _POSITIVE).sum())
    if digest.hexdigest()[:16] != card.checksum:
        raise StudyError(
            f"expert scores {file.path} are damaged: expected checksum {card.checksum}, got {digest.hexdigest()[:16]}; "
            "score the expert again"
        )
    bad = ", ".join(f"{count} {what}" for what, count in wrong.items() if count)
    if bad:
        raise StudyError(
            f"{card.eval_set}: of {len(file)} log-probabilities of {card.owner} there are {bad}, expected finite ones, "
            "at most 0; score it again with a model that gives every token some probability, or leave the set out"
        )
