"""Shards are built once and the sampler mixes token shares exactly."""

import json
import tracemalloc

import numpy as np
import pytest

from mixopt import Mixture
from mixopt.errors import ConfigError
from mixopt.proxies.tokenizer import TextTokenizer, train_tokenizer
from mixopt.proxies.tokens import DomainStream, MixtureSampler, TokenShard, growing_array, spread

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


@pytest.mark.parametrize("max_tokens", [None, 7])
def test_the_files_of_a_shard_hold_the_tokens_of_its_documents_one_after_another(tmp_path, max_tokens):
    """More documents than are held at once; empty ones are dropped."""
    tokenizer = _tokenizer(tmp_path / "tokenizer.json")
    documents = [f"{i} {DOCUMENTS[i % 2][: i % 60]}" if i % 9 else "" for i in range(1200)]
    shard = TokenShard.build(tmp_path, "a", documents, tokenizer=tokenizer, key={"max_tokens": max_tokens})
    wanted = [ids for e in tokenizer.encode(documents) if (ids := e.ids[:max_tokens])]
    offsets = np.cumsum([0, *map(len, wanted)])
    np.save(tmp_path / "tokens.npy", np.concatenate(wanted).astype(np.uint16))
    np.save(tmp_path / "offsets.npy", offsets.astype(np.int64))
    for file in ("tokens.npy", "offsets.npy"):
        assert (shard.path / file).read_bytes() == (tmp_path / file).read_bytes()
    assert (shard.meta["num_docs"], shard.meta["num_tokens"]) == (len(wanted), offsets[-1])


@pytest.mark.parametrize("length", [0, 1, 10**5])
@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_an_array_written_in_parts_has_the_bytes_of_one_written_whole(tmp_path, length, dtype):
    values = np.arange(length).astype(dtype)
    with growing_array(tmp_path / "parts.npy", values.dtype) as file:
        for start in range(0, length, 999):
            file.write(values[start : start + 999].tobytes())
    np.save(tmp_path / "whole.npy", values)
    assert (tmp_path / "parts.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()


def test_documents_that_break_off_leave_no_tokens_behind(tmp_path):
    tokenizer = _tokenizer(tmp_path / "tokenizer.json")

    def broken():
        yield from DOCUMENTS
        raise ConfigError("domains.a: cannot read on")

    with pytest.raises(ConfigError, match="cannot read on"):
        TokenShard.build(tmp_path, "a", broken(), tokenizer=tokenizer, key={})
    assert not list(tmp_path.glob("a-*/*"))


def test_a_shard_is_built_in_memory_that_does_not_grow_with_its_tokens(tmp_path):
    """Both are longer than what is held at once; numpy's buffers are traced, too."""
    tokenizer = _tokenizer(tmp_path / "tokenizer.json")

    def peak(name, num_docs):
        documents = (DOCUMENTS[0] for _ in range(num_docs))
        tracemalloc.start()
        shard = TokenShard.build(tmp_path, name, documents, tokenizer=tokenizer, key={"name": name})
        _, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return highest, 2 * shard.meta["num_tokens"]

    peak("warm-up", 10)
    (small, _), (large, num_bytes) = peak("small", 600), peak("large", 2400)
    assert large - small < num_bytes / 4


def test_vocabulary_smaller_than_the_bytes_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="at least 257"):
        train_tokenizer({"a": DOCUMENTS}, 100, tmp_path / "t.json")


def rewritten(path, change):
    """A tokenizer file as another tool might have saved it."""
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    return TextTokenizer(path)


def test_a_tokenizer_saved_with_truncation_and_padding_keeps_documents_whole(tmp_path):
    plain = _tokenizer(tmp_path / "tokenizer.json").encode(DOCUMENTS[:2])
    cutting = {
        "truncation": {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0},
        "padding": {
            "strategy": {"Fixed": 500}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
            "pad_type_id": 0, "pad_token": "<|doc|>",
        },
    }  # fmt: skip
    cut = rewritten(tmp_path / "tokenizer.json", lambda data: data.update(cutting)).encode(DOCUMENTS[:2])
    assert [e.ids for e in cut] == [e.ids for e in plain]


def test_a_tokenizer_with_gaps_in_its_ids_has_room_for_the_largest(tmp_path):
    """A smaller embedding would read, in a stack, the rows of the next model."""
    size = _tokenizer(tmp_path / "tokenizer.json").vocab_size
    far = {
        "id": size + 40, "content": "<|far|>", "single_word": False, "lstrip": False, "rstrip": False,
        "normalized": False, "special": True,
    }  # fmt: skip
    tokenizer = rewritten(tmp_path / "tokenizer.json", lambda data: data["added_tokens"].append(far))
    (encoding,) = tokenizer.encode(["<|far|>"])
    assert max(encoding.ids) < tokenizer.vocab_size


def test_a_copy_for_inference_puts_the_separator_before_every_text(tmp_path):
    from tokenizers import Tokenizer

    tokenizer = _tokenizer(tmp_path / "tokenizer.json")
    tokenizer.save_for_inference(tmp_path / "copy.json")
    copy, (ours,) = Tokenizer.from_file(str(tmp_path / "copy.json")), tokenizer.encode(DOCUMENTS[:1])
    assert copy.encode(DOCUMENTS[0]).ids == [tokenizer.separator, *ours.ids]
    assert tokenizer.separator_text == "<|doc|>"


def test_a_domain_of_positive_weight_without_tokens_is_named(tmp_path):
    data = shards(tmp_path)
    data["b"] = TokenShard.build(tmp_path, "empty", [""], tokenizer=_tokenizer(tmp_path / "tokenizer.json"), key={})
    with pytest.raises(ConfigError, match=r"domains\.b: its weight is 0\.5, but it has no tokens"):
        MixtureSampler(data, Mixture.uniform(["a", "b"]), seed=0, sequence_length=16)
    assert MixtureSampler(data, Mixture.vertex(["a", "b"], "a"), seed=0, sequence_length=16).batch(0, 2).shape == (
        2,
        17,
    )


@pytest.mark.parametrize("length", [7, 51, 64, 5000])
def test_sequences_of_any_length_are_cut_from_one_stream(tmp_path, length):
    """Longer than a document (50 to 56 tokens) and than the whole domain, too."""
    shard = write_shard(tmp_path / "a")
    sampler = MixtureSampler({"a": shard}, Mixture(("a",), [1.0]), seed=0, sequence_length=length)
    rows = np.concatenate([sampler.batch(step, 2) for step in range(2)])
    assert np.array_equal(rows[1:, 0], rows[:-1, -1])
    assert (rows[:, :-1] == 0).sum() >= 4 * length // 58


@pytest.mark.parametrize("file", ["tokens.npy", "offsets.npy"])
@pytest.mark.parametrize("damage", [None, b"", b"no array"])
def test_a_damaged_shard_says_how_to_rebuild_it(tmp_path, file, damage):
    shard = write_shard(tmp_path / "a")
    (tmp_path / "a" / file).unlink() if damage is None else (tmp_path / "a" / file).write_bytes(damage)
    with pytest.raises(
        ConfigError, match=rf"token shard .*: {file} is missing or damaged .*; remove the folder and run"
    ):
        DomainStream(shard, seed=0).read(0, 8)


def test_spread_takes_documents_from_the_whole_set(tmp_path):
    tokenizer = _tokenizer(tmp_path / "tokenizer.json")
    documents = [f"{i} " + DOCUMENTS[0] for i in range(200)]
    chosen, limit = spread(documents, 640, tokenizer)
    places = [int(d.split()[0]) for d in chosen]
    assert len(chosen) >= 16
    assert max(places) > 180
    assert min(places) < 20
    assert limit == 40


@pytest.mark.parametrize("file", ["tokens.npy", "offsets.npy"])
def test_a_shard_in_which_a_bit_flipped_is_made_again(tmp_path, caplog, file):
    tokenizer = _tokenizer(tmp_path / "tokenizer.json")
    shard = TokenShard.build(tmp_path, "a", DOCUMENTS, tokenizer=tokenizer, key={})
    true, content = shard.tokens.copy(), (shard.path / file).read_bytes()
    damaged = bytearray(content)
    damaged[-3] ^= 4
    (shard.path / file).write_bytes(damaged)
    again = TokenShard.build(tmp_path, "a", DOCUMENTS, tokenizer=tokenizer, key={})
    assert np.array_equal(again.tokens, true)
    assert (shard.path / file).read_bytes() == content
    assert f"damaged path={shard.path} files={file}" in caplog.text
