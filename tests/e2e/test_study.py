"""A study from YAML to report: two model sizes, run again, killed and resumed, Ray like serial."""

import os
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest

from mixopt.observation import Role, Status
from mixopt.study import Study

from .command_line import mixopt
from .studies import TWO_SIZES, ledger, small_study, start_mixopt


@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    """A finished study, run uninterrupted in one process."""
    root = tmp_path_factory.mktemp("serial")
    path = small_study(root)
    done = mixopt("run", path, "--dir", root / "runs" / "small", "--json")
    assert done.code == 0, done.err
    return root / "runs" / "small", path, done.data


@pytest.mark.slow
@pytest.mark.mlflow
def test_a_study_with_two_model_sizes_runs_end_to_end(tmp_path):
    path = small_study(tmp_path, ladder=TWO_SIZES, run={"executor": "serial"}, search={"batch_size": 4, "budget": 4})
    done = mixopt("run", path, "--dir", tmp_path / "runs" / "small", "--json")
    assert done.code == 0, done.err
    study = Study(tmp_path / "runs" / "small")
    assert all(trial.status is Status.DONE for trial in study.trials)
    models = {study.header.ladder[o.fidelity].model.split("-")[0] for o in study.observations}
    assert models == {"depth=1", "depth=2"}
    spent = study.history().of(Role.SEARCH).spent(study.header.ladder)
    assert 0 < spent <= 4
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    experiment = client.get_experiment_by_name("small")
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    assert len(runs) == len(study.trials) + 1
    assert {run.info.status for run in runs} == {"FINISHED"}


def test_results_are_where_the_summary_says(serial):
    directory, _, summary = serial
    assert [item["label"] for item in summary["contenders"]] == ["recommended", "natural", "uniform"]
    assert sum(summary["recommendation"]["weights"].values()) == pytest.approx(1, abs=1e-9)
    assert {row["num_seeds"] for row in summary["comparison"]} == {2}
    for key in ("mixture", "report", "ledger"):
        assert os.path.getsize(summary["files"][key]) > 0
    assert Path(summary["files"]["report"]).is_relative_to(directory)


def test_running_again_trains_nothing_and_says_the_same(serial):
    directory, path, first = serial
    before = (directory / "study.jsonl").read_bytes()
    again = mixopt("run", path, "--dir", directory, "--json")
    assert again.code == 0, again.err
    second = again.data
    assert second["already_complete"]
    for volatile in ("already_complete", "phase_seconds"):
        first = {**first, volatile: None}
        second = {**second, volatile: None}
    assert second == first
    assert (directory / "study.jsonl").read_bytes() == before


def test_a_larger_budget_continues_the_study(serial, tmp_path):
    directory, path, _ = serial
    copy = shutil.copytree(directory, tmp_path / "copy")
    longer = path.with_name("longer.yaml")
    longer.write_text(path.read_text().replace("budget: 4", "budget: 6"))
    before = {trial.id for trial in Study(copy).trials}
    done = mixopt("run", longer, "--dir", copy, "--json")
    assert done.code == 0, done.err
    new = [trial for trial in Study(copy).trials if trial.id not in before]
    assert not [trial for trial in new if trial.role is Role.EXPERT]
    assert [trial for trial in new if trial.role is Role.SEARCH]


def test_status_predict_and_report_read_the_finished_study(serial):
    directory, _, summary = serial
    status = mixopt("status", directory, "--json").data
    assert status["stopped"]
    assert status["recommended"] == summary["recommendation"]["weights"]
    mixture = "python=0.5,speeches=0.25,spanish=0.25"
    rows = mixopt("predict", directory, "--mixture", mixture, "--json").data["predictions"]
    assert rows[0]["std/objective"] > 0
    both = (rows[0]["mean/loss/jargon"] + rows[0]["mean/loss/python"]) / 2
    assert rows[0]["mean/objective"] == pytest.approx(both, rel=1e-6)
    report = mixopt("report", directory, "--json").data["report"]
    assert "<html" in Path(report).read_text()


def _wait_for_results(path, count, process):
    while process.poll() is None:
        if path.exists() and path.read_text().count('"type": "result"') >= count:
            return
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.ray
def test_killed_and_resumed_on_ray_equals_uninterrupted_in_one_process(serial, tmp_path):
    """kill -9 of the driver's process group in the experts, in the search and in the validation."""
    uninterrupted, path, _ = serial
    directory = tmp_path / "ray"
    arguments = ("run", path, "--dir", directory, "--executor", "ray", "--json")
    for count in (1, 5, 10):
        process = start_mixopt(*arguments, cwd=tmp_path)
        _wait_for_results(directory / "study.jsonl", count, process)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert start_mixopt(*arguments, cwd=tmp_path).wait() == 0
    ids = [trial.id for trial in Study(directory).trials]
    assert len(ids) == len(set(ids))
    assert ledger(directory) == ledger(uninterrupted)
