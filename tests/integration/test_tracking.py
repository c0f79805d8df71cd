import json
import logging
import shutil
import socket
import time
from dataclasses import replace

import pytest

from mixopt.errors import ConfigError, ResourceError
from mixopt.observation import Status
from mixopt.study import Study
from mixopt.tracking import MlflowTracker, NullTracker, default_uri
from tests.unit.experiments.finished_study import finished_study, started_study, write_curve

pytestmark = pytest.mark.mlflow


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory):
    """Making MLflow's tables takes seconds, so it is done once and copied."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowTracker(f"sqlite:///{path}")
    return path


@pytest.fixture
def make_tracker(empty_store, tmp_path):
    def make():
        if not (tmp_path / "mlflow.db").exists():
            shutil.copy(empty_store, tmp_path / "mlflow.db")
        return MlflowTracker(default_uri(tmp_path / "study"))

    return make


def all_runs(tracker):
    client = tracker._client
    experiments = [e.experiment_id for e in client.search_experiments()]
    return client.search_runs(experiments, max_results=1000)


def contents(tracker):
    """Everything that is shown, without ids and times."""
    shown = {}
    for run in all_runs(tracker):
        tags = {k: v for k, v in run.data.tags.items() if not k.startswith("mlflow.parent")}
        histories = {
            key: sorted((m.step, m.value) for m in tracker._client.get_metric_history(run.info.run_id, key))
            for key in run.data.metrics
        }
        shown[tags.get("mixopt.trial", "study")] = (
            run.info.run_name,
            run.info.status,
            run.data.params,
            tags,
            histories,
        )
    return shown


def run_of(tracker, trial):
    return next(run for run in all_runs(tracker) if run.data.tags.get("mixopt.trial", "study") == trial)


def cut_ledger(study, num_events):
    """Put the ledger back to its first events, as a driver killed there would have left it."""
    whole = study.files.ledger.read_bytes()
    study.files.ledger.write_bytes(b"".join(whole.splitlines(keepends=True)[:num_events]))
    return whole


def test_every_trial_has_exactly_one_run(make_tracker, tmp_path):
    study, tracker = finished_study(tmp_path / "study"), make_tracker()
    tracker.project(study)
    trials = [run.data.tags.get("mixopt.trial", "study") for run in all_runs(tracker)]
    assert sorted(trials) == sorted(["study", *(trial.id for trial in study.trials)])


def test_projecting_twice_changes_nothing(make_tracker, tmp_path):
    study, tracker = finished_study(tmp_path / "study"), make_tracker()
    tracker.project(study)
    once = contents(tracker)
    tracker.project(study)
    other = make_tracker()
    other.project(Study(tmp_path / "study"))
    assert contents(other) == once


@pytest.mark.parametrize("num_events", [3, 24])
def test_tracker_killed_half_way_ends_like_one_complete_projection(make_tracker, tmp_path, num_events):
    study = finished_study(tmp_path / "study")
    whole = cut_ledger(study, num_events)
    make_tracker().project(Study(tmp_path / "study"))
    study.files.ledger.write_bytes(whole)
    resumed = make_tracker()
    resumed.project(Study(tmp_path / "study"))
    resumed_contents = contents(resumed)
    (tmp_path / "mlflow.db").unlink()
    complete = make_tracker()
    complete.project(study)
    assert resumed_contents == contents(complete)


def test_tracker_killed_inside_a_trial_is_completed_by_the_next(make_tracker, tmp_path):
    study, tracker = finished_study(tmp_path / "study"), make_tracker()
    set_tag, calls = tracker._client.set_tag, []

    def dies(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        set_tag(*args)

    tracker._client.set_tag = dies
    with pytest.raises(KeyboardInterrupt):
        tracker.project(study)
    resumed = make_tracker()
    resumed.project(study)
    assert len(all_runs(resumed)) == len(study.trials) + 1
    history = resumed._client.get_metric_history(run_of(resumed, "expert-math").info.run_id, "train/loss")
    assert len(history) == 20


def test_run_status_follows_the_trial(make_tracker, tmp_path):
    study, tracker = started_study(tmp_path / "study"), make_tracker()
    tracker.project(study)
    status = {run.data.tags.get("mixopt.trial"): run.info.status for run in all_runs(tracker)}
    expected = {"search-000": "FINISHED", "search-006": "FAILED", "search-007": "KILLED", "search-009": "RUNNING"}
    assert {trial: status[trial] for trial in expected} == expected


def test_finish_ends_every_run_and_keeps_artifacts(make_tracker, tmp_path):
    study, tracker = started_study(tmp_path / "study"), make_tracker()
    report = tmp_path / "report.html"
    report.write_text("<p>done</p>")
    tracker.finish(study, [report, tmp_path / "missing.yaml"])
    parent = run_of(tracker, "study")
    assert parent.info.status == "FINISHED"
    assert run_of(tracker, "search-009").info.status == "KILLED"
    assert [a.path for a in tracker._client.list_artifacts(parent.info.run_id)] == ["report.html"]
    assert (tmp_path / "mlartifacts").is_dir()


def test_a_resumed_study_runs_again_in_the_same_runs(make_tracker, tmp_path):
    study = started_study(tmp_path / "study")
    make_tracker().finish(study, [], failed=True)
    tracker = make_tracker()
    assert run_of(tracker, "study").info.status == "FAILED"
    tracker.project(study)
    assert run_of(tracker, "study").info.status == "RUNNING"
    assert run_of(tracker, "search-009").info.status == "RUNNING"
    assert len(all_runs(tracker)) == len(study.trials) + 1


def test_a_retried_trial_keeps_its_run(make_tracker, tmp_path):
    study, tracker = started_study(tmp_path / "study"), make_tracker()
    tracker.project(study)
    before = run_of(tracker, "search-006").info.run_id
    study.set_status(["search-006"], Status.RUNNING)
    tracker.project(study)
    assert (run_of(tracker, "search-006").info.run_id, run_of(tracker, "search-006").info.status) == (before, "RUNNING")


def test_metrics_are_those_of_the_ledger(make_tracker, tmp_path):
    study, tracker = finished_study(tmp_path / "study"), make_tracker()
    tracker.project(study)
    run, top = run_of(tracker, "search-008").data, study.observations[-1]
    observation = next(o for o in study.observations if o.key == ("search-008", "top"))
    assert run.metrics["objective"] == pytest.approx(study.value(observation))
    assert run.metrics["eval/code/loss"] == pytest.approx(observation.losses["code"])
    assert run.metrics["eval/code/bpb"] == pytest.approx(
        observation.losses["code"] * study.header.eval_sets[1].bits_per_byte
    )
    assert run.metrics["cost"] == pytest.approx(3 * top.cost)
    assert run.metrics["load/1.3"] == 0.4
    assert run.params["w.python"] == str(round(study.trial("search-008").mixture.as_dict()["python"], 4))
    assert run.metrics["train/loss"] == pytest.approx(6.0 - 0.1 * 19)
    parent = run_of(tracker, "study").data
    assert parent.metrics["best_objective"] == pytest.approx(study.best()[1])
    assert parent.metrics["spent"] == pytest.approx(
        sum(t.price(study.header.ladder) for t in study.trials if t.role == "search")
    )
    assert parent.metrics["mixture/python"] == pytest.approx(0.4)
    assert "| python | 0.400 |" in parent.tags["mlflow.note.content"]


def test_losses_measured_later_are_added(make_tracker, tmp_path):
    study, tracker = started_study(tmp_path / "study"), make_tracker()
    tracker.project(study)
    observation = next(o for o in study.observations if o.key == ("expert-math", "top"))
    study.rescore([replace(observation, losses={"poems": 4.5})])
    tracker.project(study)
    assert run_of(tracker, "expert-math").data.metrics["eval/poems/loss"] == 4.5


def test_nan_is_never_logged(make_tracker, tmp_path):
    study, tracker = started_study(tmp_path / "study"), make_tracker()
    write_curve(study, "search-000", num_steps=1)
    path = study.files.trial("search-000") / "curve.jsonl"
    path.write_text('{"step": 1, "loss": NaN}\n{"step": 2, "loss": 3.5}\n[]\n{"step": 3}\n')
    tracker.project(study)
    history = tracker._client.get_metric_history(run_of(tracker, "search-000").info.run_id, "train/loss")
    assert [(m.step, m.value) for m in history] == [(2, 3.5)]


def test_an_unchanged_study_costs_no_request(make_tracker, tmp_path):
    study, tracker = finished_study(tmp_path / "study"), make_tracker()
    tracker.project(study)
    tracker._client = None
    tracker.project(study)
    assert tracker.active


def test_run_directory_may_hold_quotes_and_spaces(make_tracker, tmp_path):
    study, tracker = started_study(tmp_path / "it's a study"), make_tracker()
    tracker.project(study)
    make_tracker().project(study)
    assert len(all_runs(tracker)) == len(study.trials) + 1


def test_the_dashboard_shows_the_columns_of_the_study(make_tracker, tmp_path):
    study, tracker = finished_study(tmp_path / "study"), make_tracker()
    tracker.project(study)
    link = tracker.dashboard_link(study)
    key = link.partition("viewStateShareKey=")[2]
    experiment = tracker._client.get_experiment_by_name(study.header.name)
    columns = json.loads(experiment.tags[f"mlflow.sharedViewState.{key}"])["selectedColumns"]
    assert link.startswith(f"#/experiments/{experiment.experiment_id}/runs?")
    # A column that no run has would be empty.
    data = [run.data for run in all_runs(tracker)]
    shown = {f"metrics.`{k}`" for d in data for k in d.metrics} | {f"params.`{k}`" for d in data for k in d.params}
    shown |= {f"tags.`{k}`" for d in data for k in d.tags}
    assert set(columns) <= shown
    assert {"metrics.`objective`", "params.`w.python`", "tags.`mixopt.status`"} <= set(columns)
    assert tracker.dashboard_link(study) == link


def test_the_description_of_a_run_says_why_it_was_made(make_tracker, tmp_path):
    study, tracker = finished_study(tmp_path / "study"), make_tracker()
    tracker.project(study)
    note = run_of(tracker, "search-008").data.tags["mlflow.note.content"]
    trial = study.trial("search-008")
    assert trial.reason in note
    assert "python" in note
    assert "mixopt report" in run_of(tracker, "study").data.tags["mlflow.note.content"]


def test_two_studies_of_one_name_stay_apart(make_tracker, tmp_path):
    tracker = make_tracker()
    studies = [started_study(tmp_path / name) for name in "ab"]
    for study in [*studies, *studies]:
        tracker.project(study)
    assert len(all_runs(tracker)) == 2 * (len(studies[0].trials) + 1)


def test_a_store_that_dies_costs_one_warning(make_tracker, tmp_path, caplog):
    study, tracker = started_study(tmp_path / "study"), make_tracker()

    def dies(*args, **kwargs):
        raise ConnectionError("connection refused")

    tracker._client.create_run = dies
    with caplog.at_level(logging.WARNING, logger="mixopt.tracking"):
        tracker.project(study)
        tracker.project(study)
        tracker.finish(study, [])
    assert [record.message.split(" uri=")[0] for record in caplog.records] == ["tracking stopped"]
    assert "mixopt sync" in caplog.text


def test_one_lost_request_is_repeated_without_a_second_run(make_tracker, tmp_path):
    study, tracker = started_study(tmp_path / "study"), make_tracker()
    create_run, calls = tracker._client.create_run, []

    def loses_the_answer(*args, **kwargs):
        calls.append(create_run(*args, **kwargs))
        if len(calls) == 2:
            raise ConnectionError("connection reset")
        return calls[-1]

    tracker._client.create_run = loses_the_answer
    tracker.project(study)
    assert tracker.active
    assert len(all_runs(tracker)) == len(study.trials) + 1


def test_unreachable_server_is_refused_quickly():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = time.monotonic()
    with pytest.raises(ResourceError, match=rf"127.0.0.1:{port}.*--tracking-uri"):
        MlflowTracker(f"http://127.0.0.1:{port}")
    assert time.monotonic() - started < 6


def test_something_else_on_the_port_is_refused():
    import http.server
    import threading

    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(ResourceError, match="start the server"):
            MlflowTracker(f"http://127.0.0.1:{server.server_port}")
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("uri", ["./mlruns", "file:///tmp/mlruns", "ftp://host/x", "sqlite://"])
def test_unknown_kind_of_store_is_refused(uri):
    with pytest.raises(ConfigError, match=r"run\.tracking_uri"):
        MlflowTracker(uri)


def test_unwritable_store_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="cannot write the MLflow store"):
        MlflowTracker(f"sqlite:///{tmp_path / 'file' / 'mlflow.db'}")


def test_a_file_that_is_no_database_is_refused(tmp_path):
    (tmp_path / "mlflow.db").write_text("no database, only text of some length " * 50)
    with pytest.raises(ResourceError, match=r"mlflow\.db"):
        MlflowTracker(f"sqlite:///{tmp_path / 'mlflow.db'}")


def test_passwords_are_not_shown():
    with pytest.raises(ResourceError) as caught:
        MlflowTracker("http://user:secret@127.0.0.1:9")
    assert "secret" not in str(caught.value)


def test_null_tracker_accepts_everything(tmp_path):
    study = started_study(tmp_path / "study")
    NullTracker().project(study)
    NullTracker().finish(study, [], failed=True)
