"""A study from YAML to report: two model sizes, run again, killed and resumed, Ray like serial."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from mixopt.observation import Role, Status
from mixopt.study import Study

from .studies import TWO_SIZES, ledger, mixopt, small_study, start_mixopt


@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    """A finished study, run uninterrupted in one process."""
    root = tmp_path_factory.mktemp("serial")
    path = small_study(root)
    done = mixopt("run", path, "--json", cwd=root)
    assert done.returncode == 0, done.stderr
    return root, path, json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.mlflow
def test_a_study_with_two_model_sizes_runs_end_to_end(tmp_path):
    path = small_study(tmp_path, ladder=TWO_SIZES, run={"executor": "serial"}, search={"batch_size": 4, "budget": 4})
    done = mixopt("run", path, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
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
    root, _, summary = serial
    assert [item["label"] for item in summary["contenders"]] == ["recommended", "natural", "uniform"]
    assert sum(summary["recommendation"]["weights"].values()) == pytest.approx(1, abs=1e-9)
    assert {row["num_seeds"] for row in summary["comparison"]} == {2}
    for key in ("mixture", "report", "ledger"):
        assert os.path.getsize(summary["files"][key]) > 0
    assert root.as_posix() in summary["files"]["report"]


def test_running_again_trains_nothing_and_says_the_same(serial):
    root, path, first = serial
    before = (root / "runs" / "small" / "study.jsonl").read_bytes()
    again = mixopt("run", path, "--json", cwd=root)
    assert again.returncode == 0, again.stderr
    second = json.loads(again.stdout)
    assert second["already_complete"]
    for volatile in ("already_complete", "phase_seconds"):
        first = {**first, volatile: None}
        second = {**second, volatile: None}
    assert second == first
    assert (root / "runs" / "small" / "study.jsonl").read_bytes() == before


def test_a_larger_budget_continues_the_study(serial, tmp_path):
    root, path, _ = serial
    wide = tmp_path / "runs"
    import shutil

    shutil.copytree(root / "runs" / "small", wide)
    text = path.read_text().replace("budget: 4", "budget: 6")
    longer = path.with_name("longer.yaml")
    longer.write_text(text)
    before = {trial.id for trial in Study(wide).trials}
    done = mixopt("run", longer, "--dir", wide, "--json", cwd=root)
    assert done.returncode == 0, done.stderr
    study = Study(wide)
    new = [trial for trial in study.trials if trial.id not in before]
    assert not [trial for trial in new if trial.role is Role.EXPERT]
    assert [trial for trial in new if trial.role is Role.SEARCH]


def test_status_predict_and_report_read_the_finished_study(serial):
    root, path, summary = serial
    status = json.loads(mixopt("status", path, "--json", cwd=root).stdout)
    assert status["stopped"]
    assert status["recommended"] == summary["recommendation"]["weights"]
    mixture = "python=0.5,speeches=0.25,spanish=0.25"
    rows = json.loads(mixopt("predict", path, "--mixture", mixture, "--json", cwd=root).stdout)["predictions"]
    assert rows[0]["std/objective"] > 0
    both = (rows[0]["mean/loss/jargon"] + rows[0]["mean/loss/python"]) / 2
    assert rows[0]["mean/objective"] == pytest.approx(both, rel=1e-6)
    report = mixopt("report", root / "runs" / "small", "--json", cwd=root)
    assert "<html" in Path(json.loads(report.stdout)["report"]).read_text()


def _wait_for_results(path, count, process):
    while process.poll() is None:
        if path.exists() and path.read_text().count('"type": "result"') >= count:
            return
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.ray
def test_killed_and_resumed_on_ray_equals_uninterrupted_in_one_process(serial, tmp_path):
    """kill -9 of the driver's process group in the experts, in the search and in the validation."""
    _, path, _ = serial
    directory = tmp_path / "ray"
    arguments = ("run", path, "--dir", directory, "--executor", "ray", "--json")
    for count in (1, 5, 10):
        process = start_mixopt(*arguments, cwd=tmp_path)
        _wait_for_results(directory / "study.jsonl", count, process)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    done = mixopt(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    ids = [trial.id for trial in Study(directory).trials]
    assert len(ids) == len(set(ids))
    assert ledger(directory) == ledger(path.parent / "runs" / "small")
