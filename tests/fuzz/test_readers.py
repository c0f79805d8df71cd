"""Every reader against damaged files: a clear error or what the file says, never a stack trace, a hang or another number."""

import os
import random
import shutil
import signal
from contextlib import contextmanager

import numpy as np
import pytest
import yaml

from mixopt.config import dump_config, load_study
from mixopt.errors import MixoptError
from mixopt.passages import Passages, save_passages
from mixopt.proxies.tokenizer import TextTokenizer, train_tokenizer
from mixopt.runs import read_runs
from mixopt.scores import ScoreCard, save_scores
from mixopt.scores_folder import load_scores
from mixopt.storage import read_json, write_json
from mixopt.study import Study
from tests.e2e.command_line import documents, small_study
from tests.unit.experiments.finished_study import finished_study

NUM_INPUTS = int(os.environ.get("FUZZ_INPUTS", "300"))
LONGEST_SECONDS = 20  # a watchdog against hangs, no measure of speed
TOKENS = [b"\x00", b"\xff\xfe", b"\n", b"'", b'"', b"{", b"]", b": ", b"- ", b"&a ", b"*a", b"!!python/name:os.system ",
          b"1e999", b"nan", b"-1", b"99999999999999999999", b"null", b"[[[[[[[[", b"\xf0\x9f\x8d\x8b"]  # fmt: skip


@contextmanager
def watchdog():
    """Turn a hang into a failure."""

    def bark(number, frame):
        raise TimeoutError("the reader hangs")

    before = signal.signal(signal.SIGALRM, bark)
    signal.alarm(LONGEST_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def damaged(content, rng):
    """Cut, flip, insert, repeat or overwrite parts of a file; now and then random bytes instead."""
    if rng.random() < 0.05:
        return rng.randbytes(rng.randrange(200))
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at = rng.randrange(len(data) + 1)
        kind = rng.randrange(6)
        if kind == 0:
            del data[at:]
        elif kind == 1 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            data[at:at] = rng.choice(TOKENS)
        elif kind == 3:
            del data[at : at + rng.randrange(1, 40)]
        elif kind == 4:
            data[at:at] = data[max(0, at - rng.randrange(1, 80)) : at]
        else:
            piece = rng.choice(TOKENS)
            data[at : at + len(piece)] = piece
    return bytes(data)


def fuzz(path, read, judge, seed):
    """Feed a reader damaged versions of a valid file; `judge` looks at what it accepted."""
    content, rng, accepted = path.read_bytes(), random.Random(seed), 0
    for i in range(NUM_INPUTS):
        data = damaged(content, rng)
        path.write_bytes(data)
        try:
            with watchdog():
                found = read(path)
        except MixoptError as error:
            assert str(error)  # noqa: PT017
            continue
        except Exception as error:
            pytest.fail(f"input {i} of seed {seed}: {type(error).__name__}: {error}\n{data[:2000]!r}")
        accepted += 1
        judge(found, data)
    path.write_bytes(content)
    return accepted


def test_a_study_file_that_is_read_says_what_its_text_says(tmp_path):
    def judge(config, data):
        text = yaml.safe_load(data.decode())
        assert config.name == text["name"]
        assert [str(name) for name in config.domains] == [str(name) for name in text["domains"]]
        assert yaml.safe_load(dump_config(config))["name"] == config.name

    fuzz(small_study(tmp_path), load_study, judge, 1)


def test_a_runs_table_that_is_read_holds_the_numbers_of_its_text(tmp_path):
    lines = ["run,fidelity,cost,weight/web,weight/code,loss/x,score/y"]
    lines += [f"r{i},{'top' if i % 2 else 'low'},{i + 1},{i / 8},{1 - i / 8},{3 - i / 7},{i / 9}" for i in range(8)]
    path = tmp_path / "runs.csv"
    path.write_text("\n".join(lines) + "\n")

    def judge(table, data):
        assert np.allclose(table.weights.sum(-1), 1, atol=1e-9)
        assert (table.weights >= 0).all()
        words = data.decode("utf-8-sig", errors="replace").replace('"', "")
        for values in table.columns.values():
            assert not np.isinf(values).any()
            known = {float(word) for word in words.replace("\n", ",").replace("\r", ",").split(",") if _is_number(word)}
            assert set(values[np.isfinite(values)].tolist()) <= known

    fuzz(path, read_runs, judge, 2)


def _is_number(word):
    try:
        float(word)
    except ValueError:
        return False
    return True


def test_a_ledger_that_is_read_is_a_prefix_of_the_true_one(tmp_path):
    study = finished_study(tmp_path / "study")
    true = {o.key: o for o in study.observations}, {t.id: t for t in study.trials}

    def judge(found, data):
        assert all(true[0][o.key] == o for o in found.observations)
        assert all(true[1][t.id].to_json() == t.to_json() for t in found.trials)

    fuzz(study.files.ledger, lambda path: Study(path.parent), judge, 3)


def test_a_tokenizer_file_is_read_or_refused(tmp_path):
    path = tmp_path / "tokenizer.json"
    train_tokenizer({"web": documents("web"), "code": documents("code")}, 280, path)

    def judge(tokenizer, data):
        assert 0 <= tokenizer.separator < tokenizer.vocab_size
        try:
            ids = tokenizer.encode(["the page shows a link"])[0].ids
        except MixoptError:
            return
        assert all(0 <= i < tokenizer.vocab_size for i in ids)

    fuzz(path, TextTokenizer, judge, 4)


@pytest.fixture
def scores(tmp_path):
    """A scores folder of two experts on one set."""
    folder, passages = tmp_path / "scores", Passages("x", np.array([0, 20, 64]), "f" * 16)
    save_passages(folder, passages)
    for i, name in enumerate(("web", "code")):
        card = ScoreCard(name, f"expert-{name}", "top", 0, f"e{i}", "t", "x", "f" * 16)
        save_scores(folder, name, -np.linspace(0.1, 5 + i, 64, dtype=np.float32), card)
    return folder


@pytest.mark.parametrize("name", ["web.npy", "web.json", "ffffffffffffffff.set.npz"])
def test_score_files_that_are_read_are_the_true_ones(scores, name):
    true = [np.array(a[:]) for a in load_scores(scores, ("web", "code"))[0].logprobs]

    def judge(found, data):
        assert all(np.array_equal(np.asarray(a[:]), b) for a, b in zip(found[0].logprobs, true, strict=True))
        assert found[0].passages.offsets.tolist() == [0, 20, 64]

    fuzz(scores / name, lambda path: load_scores(scores, ("web", "code")), judge, 5)


def test_a_result_file_that_is_read_is_the_true_one(tmp_path):
    value = [{"trial": "t", "losses": {"x": 1.25, "y": 1e-7}, "note": "naïve ☃"}]
    write_json(tmp_path / "result.json", value)
    fuzz(tmp_path / "result.json", read_json, lambda found, data: _same(found, value), 6)
    shutil.rmtree(tmp_path)


def _same(found, value):
    assert found is None or found == value
