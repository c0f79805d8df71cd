"""Evaluation text in training text is found, whatever blocks it is read in."""

import numpy as np
import pytest

from mixopt.proxies import overlap
from mixopt.proxies.overlap import overlaps
from mixopt.proxies.tokenizer import TextTokenizer, train_tokenizer
from mixopt.proxies.tokens import TokenShard

RUN_WORDS = 40  # words of five letters: three runs of 13 words of six bytes


def text(seed, num=RUN_WORDS):
    letters = np.random.default_rng(seed).choice(list("abcdefghij"), (num, 5))
    return " ".join("".join(word) for word in letters)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_tokenizer({"web": [text(seed) for seed in range(5)]}, 300, path)
    return TextTokenizer(path)


def shard(root, name, documents, tokenizer):
    return TokenShard.build(root, name, documents, tokenizer=tokenizer, key={"documents": documents})


def found(root, tokenizer, measured, training):
    sets = {"quiz": shard(root, "eval-quiz", measured, tokenizer)}
    return overlaps(sets, {"web": shard(root, "web", training, tokenizer)}, tokenizer, root)["quiz", "web"]


def test_text_of_its_own_does_not_overlap(tmp_path, tokenizer):
    one = found(tmp_path, tokenizer, [text(1), text(2)], [text(3), text(4)])
    assert (one.share, one.documents, one.examples) == (0.0, 0.0, ())


def test_a_copied_document_is_found_and_shown(tmp_path, tokenizer):
    one = found(tmp_path, tokenizer, [text(1), text(2)], [text(3), f"{text(5)} {text(2)}", text(4)])
    assert one.documents == 0.5
    assert 0.4 < one.share < 0.6
    assert len(one.examples) == 1
    assert text(2).startswith(one.examples[0])


def test_a_shared_phrase_is_no_shared_document(tmp_path, tokenizer):
    phrase = text(9, num=16)
    one = found(tmp_path, tokenizer, [f"{text(1)} {phrase} {text(2)}"], [f"{text(3)} {phrase}"])
    assert one.documents == 0
    assert 0 < one.share < 0.3


def test_words_in_another_order_are_other_text(tmp_path, tokenizer):
    backwards = " ".join(reversed(text(1).split()))
    assert found(tmp_path, tokenizer, [text(1)], [backwards]).share == 0


def test_a_run_over_the_border_of_two_documents_does_not_count(tmp_path, tokenizer):
    first, second = text(1, num=8), text(2, num=8)
    assert found(tmp_path, tokenizer, [first, second], [f"{first}{second}"]).share == 0


def test_the_block_that_training_text_is_read_in_changes_nothing(tmp_path, tokenizer, monkeypatch):
    measured, training = [text(1), text(2)], [text(3), text(2), text(4)]
    whole = found(tmp_path / "a", tokenizer, measured, training)
    monkeypatch.setattr(overlap, "_BLOCK", 17)
    assert found(tmp_path / "b", tokenizer, measured, training) == whole


def test_what_was_found_is_remembered(tmp_path, tokenizer):
    first = found(tmp_path, tokenizer, [text(1)], [text(1)])
    (tmp_path / "web").mkdir()
    files = sorted((tmp_path / "overlap").iterdir())
    stamps = [path.stat().st_mtime_ns for path in files]
    assert found(tmp_path, tokenizer, [text(1)], [text(1)]) == first
    assert [path.stat().st_mtime_ns for path in files] == stamps


@pytest.mark.parametrize("length", [1, 2, 3, 5, 8, 13])
def test_runs_have_one_hash_each(length):
    tokens = np.random.default_rng(0).integers(0, 3, 400)
    hashes = overlap._hashes(tokens, length)
    runs = [tuple(tokens[i : i + length]) for i in range(len(tokens) - length + 1)]
    assert len(hashes) == len(runs)
    assert len(set(zip(runs, hashes.tolist(), strict=True))) == len(set(runs)) == len(set(hashes.tolist()))
    assert len(overlap._hashes(tokens[: length - 1], length)) == 0
