"""Files for workers without the run directory: what arrives is what was sent, or nothing."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixopt import ConfigError, Mixture, Observation, Role, Status, StudyError, Trial
from mixopt.execution import run_job
from mixopt.protocols import Job, TrialResult
from mixopt.storage import RunDirectory
from mixopt.transfer import (
    Answer,
    MessageDepot,
    TransferError,
    UrlDepot,
    _inside,
    _Mirror,
    digest_of,
    list_files,
    study_key,
    work_apart,
)

JOB = Job("job", (Trial("t", Role.SEARCH, Mixture.uniform(("a", "b")), "top", 0, "test"),))


class Writer:
    """Reads an input, writes files of a trial and counts how often it was asked to."""

    def __init__(self, log):
        self.log = log

    def evaluate(self, job, directory):
        files = RunDirectory(directory)
        text = (files.tokens / "a" / "words.txt").read_text()
        checkpoint = files.job(job.fingerprint) / "checkpoint.safetensors"
        self.log.append(checkpoint.read_text() if checkpoint.exists() else "from scratch")
        folder = files.trial("t")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "curve.jsonl").write_text(text.upper())
        (folder / ".temporary").write_text("unfinished")
        return [TrialResult("t", Status.DONE, (Observation("t", "top", {"x": float(len(text))}),))]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The run directory of a driver, and a temporary folder for the node."""
    (tmp_path / "node").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "node"))
    words = tmp_path / "run" / "tokens" / "a" / "words.txt"
    words.parent.mkdir(parents=True)
    words.write_text("some words")
    (words.parent / "empty").touch()
    return tmp_path / "run"


def sent(home, depot=None):
    """What the driver sends: {path: digest}, and a depot for the worker."""
    paths = dict(list_files(home, ["tokens/a", "trials/missing/state"]))
    inputs = {name: digest_of(path) for name, path in paths.items()}
    if depot:
        for name, path in paths.items():
            depot.send(path, inputs[name])
        return inputs, depot
    contents = {inputs[name]: np.fromfile(path, np.uint8) for name, path in paths.items()}
    return inputs, MessageDepot(contents.__getitem__)


def work(home, depot=None, log=None):
    inputs, depot = sent(home, depot)
    evaluator = Writer([] if log is None else log)
    return work_apart(evaluator, JOB, inputs, run=run_job, key=study_key(home), depot=depot)


def losses(results):
    return [(result.trial, result.status, [o.losses for o in result.observations]) for result in results]


@pytest.fixture(params=["messages", "store"])
def depot(request, tmp_path):
    return None if request.param == "messages" else UrlDepot(f"file://{tmp_path}/store")


def test_a_job_done_apart_leaves_the_same_files_as_one_done_at_home(home, depot, tmp_path):
    answer = work(home, depot)
    value = answer.unpack(home, depot)
    files = RunDirectory(home)
    assert losses(value) == losses(run_job(Writer([]), JOB, home))
    assert (files.trial("t") / "curve.jsonl").read_text() == "SOME WORDS"
    assert set(answer.files) == {"jobs/job/result.json", "trials/t/curve.jsonl"}


def test_a_node_keeps_nothing_of_a_finished_job_but_its_inputs(home, depot, tmp_path):
    answer = work(home, depot)
    left = [path for path in (tmp_path / "node").rglob("*") if path.is_file()]
    assert {path.parent.name for path in left} == {"blobs"}
    assert {path.name for path in left}.isdisjoint(answer.files.values())


def test_a_job_that_the_store_has_finished_is_not_done_again(home, tmp_path):
    store, log = UrlDepot(f"file://{tmp_path}/store"), []
    first, second = work(home, store, log), work(home, store, log)
    assert log == ["from scratch"]
    assert (losses(first.value), first.files) == (losses(second.value), second.files)


def test_a_finished_job_whose_result_is_damaged_in_the_store_is_done_again(home, tmp_path):
    store, log = UrlDepot(f"file://{tmp_path}/store"), []
    first = work(home, store, log)
    (tmp_path / "store" / "blobs" / first.files["jobs/job/result.json"]).write_bytes(b"{}")
    assert losses(work(home, store, log).unpack(home, store)) == losses(first.value)
    assert len(log) == 2


@pytest.mark.parametrize("damaged", [False, True])
def test_a_job_goes_on_from_the_checkpoint_in_the_store_if_that_is_whole(home, tmp_path, damaged):
    store, log = UrlDepot(f"file://{tmp_path}/store"), []
    checkpoint = RunDirectory(tmp_path / "other").job("job") / "checkpoint.safetensors"
    checkpoint.parent.mkdir(parents=True)
    for step in ("step 1", "step 2"):
        checkpoint.unlink(missing_ok=True)
        checkpoint.write_text(step)
        mirror = _Mirror(tmp_path / "other", "job", store)
        mirror.copy()
    (blob,) = store.published("checkpoints", "job").values()
    if damaged:
        (tmp_path / "store" / "blobs" / blob).write_text("torn")
    work(home, store, log)
    assert log == ["from scratch" if damaged else "step 2"]
    assert store.published("checkpoints", "job") is None
    assert not (tmp_path / "store" / "blobs" / blob).exists()


def test_the_store_keeps_only_the_last_checkpoint_of_a_job(tmp_path):
    store = UrlDepot(f"file://{tmp_path}/store")
    mirror = _Mirror(tmp_path, "job", store)
    checkpoint = RunDirectory(tmp_path).job("job") / "checkpoint.safetensors"
    checkpoint.parent.mkdir(parents=True)
    for step in range(3):
        temporary = checkpoint.with_name("new")
        temporary.write_text(f"step {step}")
        temporary.replace(checkpoint)
        mirror.seen = 0
        mirror.copy()
    assert [path.read_text() for path in (tmp_path / "store" / "blobs").iterdir()] == ["step 2"]


def test_a_damaged_content_is_refused_and_can_be_sent_again(tmp_path):
    store, path = UrlDepot(f"file://{tmp_path}/store"), tmp_path / "file"
    path.write_text("content")
    digest = digest_of(path)
    store.send(path, digest)
    (tmp_path / "store" / "blobs" / digest).write_text("CONTENT")
    with pytest.raises(TransferError, match="arrived damaged"):
        store.fetch(digest, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    store.send(path, digest)
    store.fetch(digest, tmp_path / "copy")
    assert (tmp_path / "copy").read_text() == "content"


def test_a_content_cut_short_on_its_way_up_is_sent_again(tmp_path):
    store, path = UrlDepot(f"file://{tmp_path}/store"), tmp_path / "file"
    path.write_text("content")
    store.send(path, digest_of(path))
    blob = tmp_path / "store" / "blobs" / digest_of(path)
    blob.write_text("cont")
    store.send(path, digest_of(path))
    assert blob.read_text() == "content"


def test_a_message_that_changed_on_its_way_is_refused(tmp_path):
    path = tmp_path / "file"
    path.write_text("content")
    changed = MessageDepot({digest_of(path): np.frombuffer(b"CONTENT", np.uint8)}.__getitem__)
    with pytest.raises(TransferError, match="arrived damaged"):
        changed.fetch(digest_of(path), tmp_path / "copy")


@given(st.lists(st.sampled_from(["a", "..", ".", "/", "b.json", "\0", ""]), min_size=1, max_size=5).map("/".join))
def test_no_name_leads_out_of_the_run_directory(name):
    home = Path("/some/run")
    try:
        inside = _inside(name)
    except TransferError:
        return
    place = home / inside
    assert place != home
    assert ".." not in place.parts
    assert place.is_relative_to(home)


def test_an_answer_that_names_a_file_elsewhere_writes_nothing(tmp_path):
    content = np.frombuffer(b"x", np.uint8)
    answer = Answer(None, {"../outside": "d"}, {"d": content})
    with pytest.raises(TransferError, match="outside the run directory"):
        answer.unpack(tmp_path / "run")
    assert not (tmp_path / "outside").exists()


@pytest.mark.parametrize("url", ["nosuchprotocol://bucket/folder"])
def test_a_store_of_an_unknown_kind_is_refused_by_the_field_that_names_it(url):
    with pytest.raises(ConfigError, match=r"run\.storage: cannot use nosuchprotocol"):
        UrlDepot(url)


def test_the_name_under_which_files_travel_stays_and_differs_between_studies(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    assert study_key(tmp_path / "one") == study_key(tmp_path / "one") != study_key(tmp_path / "two")
    (tmp_path / "one" / "transfer.json").write_text(json.dumps({"other": 1}))
    with pytest.raises(StudyError, match="damaged"):
        study_key(tmp_path / "one")
