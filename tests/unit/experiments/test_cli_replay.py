"""The verb `replay`, from a file of runs to tables, JSON and curves."""

import csv
import json
import logging
from pathlib import Path

import numpy as np
import pytest

from mixopt.runs import write_runs
from mixopt.runs_table import RunsTable
from mixopt.search.hard import TARGET, hard_case
from tests.e2e.command_line import mixopt

FIELDS = (
    "optimizer", "objective", "seeds", "cost_to_best_mean", "cost_to_best_se", "success", "auc_mean",
    "regret_at_budget_mean", "recommendation_regret_mean", "runs_bought", "seconds_per_decision",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def a_file(table=None, name="runs.csv"):
    write_runs(table or hard_case("nested", 0), Path(name))
    return name


def replay(*words, target=TARGET, objective="mean(loss/*)"):
    objectives = ("--objective", objective) if objective else ()
    return mixopt("replay", *words, "--target-fidelity", target, *objectives)


def quick(*words, **settings):
    return replay(a_file(), "--optimizers", "random", "--seeds", "2", "--budget", "5", *words, **settings)


def test_json_has_one_row_per_optimizer_and_objective(tmp_path):
    answer = quick("--json", "--objective", "loss/c0")
    rows = answer.data["results"]
    assert answer.code == 0
    assert [(row["optimizer"], row["objective"], row["seeds"]) for row in rows] == [
        ("random", "loss/c0", 2),
        ("random", "mean(loss/*)", 2),
    ]
    assert all(set(FIELDS) <= set(row) for row in rows)
    assert all(row["runs_bought"] == {"low0": 0, TARGET: 5} for row in rows)


def test_the_same_command_resumes_from_its_cache(tmp_path):
    first = quick("--json").data["results"]
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs" / "replay").rglob("result.json")}
    again = quick("--json").data["results"]
    assert again == first  # seconds included: nothing was done again
    assert {path: path.stat().st_mtime_ns for path in files} == files
    assert len(files) == 2


def test_without_a_cache_nothing_is_kept(tmp_path):
    quick("--no-cache", "--json")
    assert [path.name for path in tmp_path.iterdir()] == ["runs.csv"]


def test_the_cache_may_lie_elsewhere(tmp_path):
    quick("--cache", "elsewhere", "--json")
    assert len(list((tmp_path / "elsewhere").rglob("result.json"))) == 2


def test_curves_have_a_row_per_decision(tmp_path):
    quick("--out", "curves.csv", "--json")
    with open("curves.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        "optimizer", "objective", "seed", "step", "run", "fidelity", "cost", "total_cost", "value", "regret",
        "recommendation_regret", "seconds",
    ]  # fmt: skip
    assert [(row["seed"], row["step"], row["total_cost"]) for row in rows[4:6]] == [
        ("0", "5", "5.0"),
        ("1", "1", "1.0"),
    ]


def test_random_objectives_are_pooled_and_their_weights_are_told():
    data = quick("--random-objectives", "3", "--json", objective=None).data
    assert [row["objective"] for row in data["results"]] == ["random-1", "random-2", "random-3"]
    (pooled,) = data["pooled"]
    assert (pooled["objectives"], pooled["seeds"], pooled["objective"]) == (3, 2, "3 random objectives")
    assert pooled["cost_to_best_mean"] == pytest.approx(np.mean([r["cost_to_best_mean"] for r in data["results"]]))
    weights = data["objectives"]["random-1"]
    assert list(weights.values()) == pytest.approx(np.random.default_rng(0).dirichlet([0.5] * 4, size=3)[0])


def test_tables_show_every_objective_and_the_pooled_ones():
    text = quick("--random-objectives", "2").out
    assert "mean(loss/*)" in text
    assert "2 random objectives" in text
    assert "random-2" in text
    assert "standard error" in text


def test_a_cap_on_decisions_is_told():
    data = quick("--max-decisions", "2", "--json").data
    assert data["results"][0]["stopped"] == {"cap": 2}
    assert "random: 2 replays ended at the cap of 2 decisions" in data["notes"][0]


def test_results_go_to_stdout_and_log_lines_to_stderr():
    answer = mixopt("-v", "replay", a_file(), "--target-fidelity", TARGET, "--objective", "loss/c0", "--optimizers",
                    "random", "--seeds", "1", "--budget", "2", "--json")  # fmt: skip
    assert json.loads(answer.out)["results"]
    assert "replay done optimizer=random objective=loss/c0 seed=0" in answer.err
    assert logging.getLogger("mixopt").level in (logging.NOTSET, logging.WARNING)


def test_equal_objectives_everywhere_are_noted():
    points = np.random.default_rng(0).dirichlet(np.ones(2), 3)
    table = RunsTable(("a", "b"), tuple("rst"), ("top",) * 3, points, {"loss/x": np.ones(3)}, np.ones(3))
    data = replay(a_file(table), "--optimizers", "random", "--json", "--budget", "3", objective="loss/x").data
    assert data["results"][0]["auc_mean"] == 0
    assert "every regret is 0" in data["notes"][0]


@pytest.mark.parametrize(
    ("words", "settings", "message"),
    [
        (("--optimizers", "random,best"), {}, "unknown optimizer 'best'; known are mfbo"),
        (("--optimizers", " , "), {}, "--optimizers: expected names separated by commas"),
        ((), {"target": "1b"}, "unknown fidelity '1b'; the table has low0, top"),
        ((), {"objective": "loss/zz"}, "unknown column 'loss/zz'"),
        ((), {"objective": None}, "nothing is minimized; give --objective"),
        (("--budget", "0.01"), {}, "pay the cheapest run (0.05 runs of top)"),
        (("--out", "."), {}, "--out: expected a file to write"),
    ],
)
def test_wrong_use_is_one_clear_message_and_exit_code_two(words, settings, message):
    answer = replay(a_file(), "--seeds", "1", "--optimizers", "random", *words, **settings)
    assert answer.code == 2
    assert message in answer.err
    assert answer.err.count("\n") == 1
    assert answer.out == ""


def test_a_missing_table_is_wrong_use():
    answer = replay("nowhere.csv")
    assert answer.code == 2
    assert "nowhere.csv" in answer.err


def test_one_run_is_nothing_to_search():
    table = RunsTable(("a", "b"), ("r",), ("top",), np.array([[0.5, 0.5]]), {"loss/x": np.ones(1)}, np.ones(1))
    answer = replay(a_file(table), objective="loss/x")
    assert answer.code == 2
    assert "nothing to search" in answer.err
