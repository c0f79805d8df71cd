"""Shards are built once and the sampler mixes token shares exactly."""

import numpy as np
import pytest

from mixopt import Mixture
from mixopt.errors import ConfigError
from mixopt.proxies.tokens import DomainStream, MixtureSampler, TextTokenizer, TokenShard, spread, train_tokenizer

from .builders import shards, write_shard

DOCUMENTS = [
    "the quick brown fox jumps over the lazy dog. " * 5,
    "größere Wörter, naïve façade, 文字 and emoji 🙂. " * 5,
] * 20


def _tokenizer(path, vocab_size=300):
    train_tokenizer({"a": DOCUMENTS}, vocab_size, path)
    return TextTokenizer(path)


def test_token_shares_are_within_one_percent_after_200k_tokens(tmp_path):
    names = ("a", "b", "c", "d")
    weights = [0.55, 0.3, 0.11, 0.04]
    sampler = MixtureSampler(shards(tmp_path, names), Mixture.normalized(names, weights), seed=3, sequence_length=128)
    num = 200_000 // 128
    counts = sampler.counts(num)
    for name, weight in zip(names, weights, strict=True):
        assert abs(counts[name] / num - weight) < 0.01


def test_expected_share_is_the_weight(tmp_path):
    """Over seeds the first slot alone has the weights as its distribution (4 standard errors)."""
    data, weights, num = shards(tmp_path), np.array([0.8, 0.2]), 2000
    mixture = Mixture(("a", "b"), weights)
    first = sum(MixtureSampler(data, mixture, seed=s, sequence_length=8).counts(1)["a"] for s in range(num))
    assert abs(first / num - 0.8) < 4 * np.sqrt(0.8 * 0.2 / num)


def test_batches_are_a_function_of_seed_and_step(tmp_path):
    data, mixture = shards(tmp_path), Mixture.uniform(["a", "b"])
    one = MixtureSampler(data, mixture, seed=0, sequence_length=16)
    other = MixtureSampler(data, mixture, seed=0, sequence_length=16)
    in_order = [one.batch(step, 2) for step in range(60)]
    assert np.array_equal(other.batch(59, 2), in_order[59])
    assert np.array_equal(other.batch(3, 2), in_order[3])
    assert not np.array_equal(MixtureSampler(data, mixture, seed=1, sequence_length=16).batch(3, 2), in_order[3])


def test_an_epoch_of_the_stream_is_every_document_once(tmp_path):
    shard = write_shard(tmp_path / "a", num_docs=13)
    stream = DomainStream(shard, seed=5)
    for epoch in range(2):
        tokens = stream.read(epoch * stream.epoch_length, stream.epoch_length)
        pieces = np.split(tokens, np.flatnonzero(tokens == 0))[1:]
        assert sorted(p[1:].tolist() for p in pieces) == sorted(
            shard.tokens[a:b].tolist() for a, b in zip(shard.offsets[:-1], shard.offsets[1:], strict=True)
        )


def test_reads_join_seamlessly_at_any_cut(tmp_path):
    stream = DomainStream(write_shard(tmp_path / "a", num_docs=5), seed=0)
    whole = stream.read(0, 3 * stream.epoch_length)
    for cut in (1, 7, stream.epoch_length, stream.epoch_length + 1):
        assert np.array_equal(np.concatenate([stream.read(0, cut), stream.read(cut, len(whole) - cut)]), whole)


def test_epochs_are_counted(tmp_path):
    data = shards(tmp_path)
    sampler = MixtureSampler(data, Mixture.vertex(["a", "b"], "a"), seed=0, sequence_length=16)
    length = DomainStream(data["a"], 0).epoch_length
    assert sampler.epochs(100) == {"a": pytest.approx(1600 / length), "b": 0.0}


def test_tokenizer_round_trips_any_text_and_counts_bytes(tmp_path):
    tokenizer = _tokenizer(tmp_path / "tokenizer.json")
    shard = TokenShard.build(tmp_path, "a", DOCUMENTS, tokenizer=tokenizer, key={})
    assert shard.meta["num_bytes"] == sum(len(d.encode()) for d in DOCUMENTS)
    assert shard.meta["num_docs"] == len(DOCUMENTS)
    assert shard.tokens.dtype == np.uint16
    assert not np.any(shard.tokens == tokenizer.separator)


def test_shard_is_built_once_and_named_by_content(tmp_path):
    tokenizer = _tokenizer(tmp_path / "tokenizer.json")
    TokenShard.build(tmp_path, "a", DOCUMENTS, tokenizer=tokenizer, key={"source": 1})

    def forbidden():
        raise AssertionError("read again")
        yield ""

    again = TokenShard.build(tmp_path, "a", forbidden(), tokenizer=tokenizer, key={"source": 1})
    other = TokenShard.build(tmp_path, "a", DOCUMENTS[:3], tokenizer=tokenizer, key={"source": 2})
    assert again.meta["fingerprint"] != other.meta["fingerprint"]


def test_vocabulary_smaller_than_the_bytes_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="at least 257"):
        train_tokenizer({"a": DOCUMENTS}, 100, tmp_path / "t.json")


def test_spread_takes_documents_from_the_whole_set(tmp_path):
    tokenizer = _tokenizer(tmp_path / "tokenizer.json")
    documents = [f"{i} " + DOCUMENTS[0] for i in range(200)]
    chosen, limit = spread(documents, 640, tokenizer)
    places = [int(d.split()[0]) for d in chosen]
    assert len(chosen) >= 16
    assert max(places) > 180
    assert min(places) < 20
    assert limit == 40
