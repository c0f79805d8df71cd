import logging
import re

import pytest
import yaml

import mixopt as package
from mixopt.experiments import cli
from tests.e2e.command_line import mixopt, write_text
from tests.unit.experiments.finished_study import BEST, HEADER, NAMES, finished_study, started_study

VERBS = (
    "init", "check", "run", "status", "predict", "suggest", "tell", "serve", "replay", "convert", "report", "dashboard",
    "sync", "doctor", "bench", "export", "export-model",
)  # fmt: skip
LADDER = [{"name": rung.name, "tokens": rung.num_tokens} for rung in HEADER.ladder]


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run_directory(folder, make=finished_study):
    """A run directory of a synthetic study, with its resolved study file."""
    study = make(folder / "run")
    config = {
        "name": "three-sets",
        "domains": {name: {"path": f"{name}.txt"} for name in NAMES},
        "objective": dict(HEADER.objective),
        "ladder": LADDER,
        "search": {"optimizer": "sobol"},
        "run": {"tracking_uri": "none"},
    }
    (folder / "run" / "study.yaml").write_text(yaml.safe_dump(config))
    return study.files.path


def test_help_names_every_verb():
    text = mixopt("--help").out
    assert [verb for verb in VERBS if not re.search(rf"\b{verb}\b", text)] == []
    assert {command.name for command in cli.app.registered_commands} == set(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself_and_can_answer_in_json(verb):
    answer = mixopt(verb, "--help")
    assert answer.code == 0
    assert "--json" in answer.out


def test_the_version_is_that_of_the_package():
    assert mixopt("--version").out == f"mixopt {package.__version__}\n"


def test_without_a_verb_the_help_is_shown():
    answer = mixopt()
    assert "Usage" in answer.out + answer.err
    assert answer.code == 2


@pytest.mark.parametrize(
    ("verbose", "level"), [(0, logging.WARNING), (1, logging.INFO), (2, logging.DEBUG), (3, logging.DEBUG)]
)
def test_more_v_gives_more_log_lines(verbose, level):
    logger = logging.getLogger("mixopt")
    before = logger.handlers, logger.propagate, logger.level
    try:
        cli.configure(verbose)
        assert logger.level == level
    finally:
        logger.handlers, logger.propagate = before[0], before[1]
        logger.setLevel(before[2])


def test_status_tells_what_is_done_running_and_failed(tmp_path):
    data = mixopt("status", run_directory(tmp_path, started_study), "--json").data
    assert data["trials"]["expert"] == {"done": 4}
    assert data["trials"]["search"] == {"done": 7, "failed": 1, "abandoned": 1, "running": 1}
    assert [item["id"] for item in data["running"]] == ["search-009"]
    assert {item["id"]: item["note"] for item in data["troubled"]} == {
        "search-006": "worker lost", "search-007": "loss is not finite",
    }  # fmt: skip
    assert data["recommended"] is None
    assert (data["spent"], data["budget"]) == (6.4375, 6.0)


def test_status_of_a_finished_study_tells_the_mixture(tmp_path):
    data = mixopt("status", run_directory(tmp_path), "--json").data
    assert list(data["recommended"].values()) == BEST.tolist()
    assert data["stopped"] == "the budget is spent"


def test_status_for_people_names_best_budget_and_troubles(tmp_path):
    text = mixopt("status", run_directory(tmp_path, started_study)).out
    for part in ("three-sets", "4 done", "failed search-006: worker lost", "of 6 top-rung runs", "best measured"):
        assert part in text


def test_a_run_directory_and_its_study_file_mean_the_same_study(tmp_path):
    directory = run_directory(tmp_path)
    by_file = mixopt("status", directory / "study.yaml", "--dir", directory, "--json")
    assert by_file.data == mixopt("status", directory, "--json").data


def test_a_run_directory_needs_no_second_one(tmp_path):
    answer = mixopt("status", run_directory(tmp_path), "--dir", tmp_path / "other")
    assert (answer.code, answer.out) == (2, "")
    assert "is a run directory already; drop --dir" in answer.err


def test_report_writes_one_page_and_prints_its_path(tmp_path):
    directory = run_directory(tmp_path)
    path = directory / "report" / "report.html"
    assert mixopt("report", directory).out.strip() == str(path)
    assert path.read_text(encoding="utf-8").startswith("<!")


def test_predictions_are_in_the_unit_of_the_objective_and_in_the_asked_order(tmp_path):
    mixtures = ["web=1", "web=0.25,python=0.4,math=0.25,spanish=0.1"]
    words = [word for mixture in mixtures for word in ("--mixture", mixture)]
    rows = mixopt("predict", run_directory(tmp_path), *words, "--json").data["predictions"]
    assert [row["weights"]["web"] for row in rows] == [1.0, 0.25]
    factors = {s.name: s.bits_per_byte for s in HEADER.eval_sets}
    assert all(row["unit"] == "bits_per_byte" for row in rows)
    # The objective is the mean of the two columns, in the same unit: a nat per token would be off by a factor.
    for row in rows:
        assert row["mean/objective"] == pytest.approx((row["mean/loss/jargon"] + row["mean/loss/code"]) / 2, rel=1e-6)
        assert 0.5 < row["mean/loss/jargon"] / factors["jargon"] < 10
        assert row["std/objective"] > 0


def test_sync_without_tracking_counts_the_trials(tmp_path):
    directory = run_directory(tmp_path)
    assert mixopt("sync", directory, "--json").data == {"trials": 20, "tracking_uri": "none"}


def test_a_dashboard_without_tracking_is_wrong_use(tmp_path):
    answer = mixopt("dashboard", run_directory(tmp_path))
    assert answer.code == 2
    assert "run.tracking_uri is none" in answer.err


def test_a_dashboard_open_to_others_must_name_its_hosts(tmp_path):
    answer = mixopt("dashboard", run_directory(tmp_path), "--host", "0.0.0.0")
    assert answer.code == 2
    assert "--allowed-hosts" in answer.err


def test_init_writes_a_study_that_can_be_loaded(tmp_path):
    write_text(tmp_path / "text")
    answer = mixopt("init", "text", "--json")
    assert [domain["name"] for domain in answer.data["domains"]] == ["code", "web"]
    assert yaml.safe_load((tmp_path / "study.yaml").read_text())["name"] == "text"


def test_init_with_force_replaces_the_file(tmp_path):
    write_text(tmp_path / "text")
    (tmp_path / "study.yaml").write_text("old")
    assert mixopt("init", "text", "--force", "--name", "fresh").code == 0
    assert yaml.safe_load((tmp_path / "study.yaml").read_text())["name"] == "fresh"


def test_doctor_ends_with_code_one_exactly_if_something_is_missing():
    answer = mixopt("doctor", "--json")
    assert answer.code == (0 if answer.data["ok"] else 1)
    assert {"python", "torch", "ray", "mlflow", "cores", "disk"} <= {
        finding["what"] for finding in answer.data["findings"]
    }


def test_doctor_names_text_that_is_not_there(tmp_path):
    directory = run_directory(tmp_path)
    answer = mixopt("doctor", directory, "--json")
    text = next(finding for finding in answer.data["findings"] if finding["what"] == "text")
    assert answer.code == 1
    assert not text["ok"]
    assert re.search(r"domains\.\w+\.path: no txt", text["detail"])
