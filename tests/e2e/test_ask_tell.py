"""Ask and tell from the shell and from Python, by a scripted user with a trainer of their own."""

import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from mixopt import Constraints, Objective
from mixopt.search.problems import SyntheticProblem
from mixopt.storage import RunDirectory
from tests.e2e.command_line import mixopt, small_study

torch.set_num_threads(1)

ROOT = Path(__file__).parents[2]
PROBLEM = SyntheticProblem.random(3, 2, seed=1, noise=0.0, bias=0.2)
OBJECTIVE = Objective.parse("mean(loss/*)", [f"loss/{name}" for name in PROBLEM.eval_sets])
POSITIONS = {"small": 0.0, "large": 1.0}
COSTS = {"small": 1.0, "large": 10.0}


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def study_file(folder, **fields):
    study = {
        "name": "mine",
        "trainer": "external",
        "domains": list(PROBLEM.domains),
        "objective": "mean(loss/*)",
        "ladder": COSTS,
        "search": {"optimizer": "random"},
        **fields,
    }
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(study, sort_keys=False))
    return path


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def train(row):
    """What the user's trainer finds for a row of the table: the row with its losses."""
    weights = np.array([[float(row[f"weight/{name}"]) for name in PROBLEM.domains]])
    losses = PROBLEM.losses(weights, POSITIONS[row["fidelity"]])[0]
    return {**row, **{f"loss/{name}": value for name, value in zip(PROBLEM.eval_sets, losses.tolist(), strict=True)}}


def own_runs(num, seed=0, fidelity="large"):
    rows = np.random.default_rng(seed).dirichlet(np.ones(len(PROBLEM.domains)), num).tolist()
    names = [f"weight/{name}" for name in PROBLEM.domains]
    return [
        train({"run": f"mine-{i}", "fidelity": fidelity, **dict(zip(names, row, strict=True))})
        for i, row in enumerate(rows)
    ]


def regret(weights):
    """How far a mixture is from the best one at the target."""
    point = np.array([[weights[name] for name in PROBLEM.domains]])
    best = PROBLEM.optimum(OBJECTIVE, Constraints.simplex(PROBLEM.domains))[1]
    return float(PROBLEM.objective_value(OBJECTIVE, point)[0] - best)


@pytest.mark.slow
def test_a_user_with_an_own_trainer_finds_a_better_mixture_than_by_random_runs_of_the_same_cost(tmp_path):
    study = study_file(tmp_path, search={"optimizer": "mfbo", "budget": 4})
    spent = 0.0
    for number in range(6):
        suggested = mixopt("suggest", study, "-n", 3, "--out", "next.csv")
        assert suggested.code == 0, suggested.err
        rows = [train(row) for row in read(tmp_path / "next.csv")]
        spent += sum(float(row["cost"]) for row in rows) / COSTS["large"]
        if rows:
            told = mixopt("tell", study, "--runs", write(tmp_path / f"done-{number}.csv", rows), "--json")
            assert told.code == 0, told.err
    assert 0 < spent <= 4
    found = told.data["recommendation"]
    bought = own_runs(4)
    random = min(regret({n: r[f"weight/{n}"] for n in PROBLEM.domains}) for r in bought)
    assert regret(found["weights"]) < random
    # Noise-free runs: a hundredth of the spread of random mixtures, which is about 0.3.
    assert regret(found["weights"]) < 0.01


def test_suggested_runs_are_told_in_any_order_and_in_parts(tmp_path):
    study = study_file(tmp_path)
    mixopt("suggest", study, "-n", 3, "--out", "next.csv")
    rows = [train(row) for row in read(tmp_path / "next.csv")]
    first = mixopt("tell", study, "--runs", write(tmp_path / "a.csv", [rows[2]]), "--json").data
    assert (first["told"], first["pending"]) == (1, ["search-000", "search-001"])
    second = mixopt("tell", study, "--runs", write(tmp_path / "b.csv", rows[::-1]), "--json").data
    assert (second["told"], second["known_already"], second["pending"]) == (2, 1, [])


def test_parquet_csv_and_stdout_hold_the_same_suggestions(tmp_path):
    from pyarrow import parquet

    study = study_file(tmp_path)
    assert mixopt("suggest", study, "-n", 2, "--out", "next.csv").code == 0
    assert mixopt("suggest", study, "--pending", "--out", "next.parquet").code == 0
    shown = list(csv.DictReader(io.StringIO(mixopt("suggest", study, "--pending", "--out", "-").out)))
    assert shown == read(tmp_path / "next.csv")
    table = parquet.read_table(tmp_path / "next.parquet").to_pylist()
    assert [{k: v if isinstance(v, str) else repr(v) for k, v in row.items()} for row in table] == shown


def test_asking_again_suggests_further_runs_and_says_why_there_are_fewer(tmp_path):
    study = study_file(tmp_path, search={"optimizer": "random", "budget": 3})
    first = mixopt("suggest", study, "-n", 2, "--json").data
    second = mixopt("suggest", study, "-n", 2, "--json").data
    assert [s["run"] for s in first["suggestions"] + second["suggestions"]] == [f"search-00{i}" for i in range(3)]
    assert first["fewer_because"] is None
    assert "the budget is spent" in second["fewer_because"]
    assert "0 of 4 runs suggested: the budget is spent" in mixopt("suggest", study).err


def test_candidates_are_named_in_the_written_table(tmp_path):
    study = study_file(tmp_path)
    rows = [{k: v for k, v in row.items() if not k.startswith("loss/")} for row in own_runs(4)]
    write(tmp_path / "possible.csv", rows)
    answer = mixopt("suggest", study, "-n", 2, "--candidates", "possible.csv", "--out", "next.csv")
    assert answer.code == 0, answer.err
    weights = {row["run"]: [row[f"weight/{n}"] for n in PROBLEM.domains] for row in rows}
    for row in read(tmp_path / "next.csv"):
        assert [float(row[f"weight/{n}"]) for n in PROBLEM.domains] == weights[row["candidate"]]


def test_status_and_predict_look_at_a_study_of_own_runs(tmp_path):
    study = study_file(tmp_path)
    assert mixopt("tell", study, "--runs", write(tmp_path / "runs.csv", own_runs(5))).code == 0
    status = mixopt("status", study, "--json").data
    assert status["trials"]["search"] == {"done": 5}
    assert sum(status["recommended"].values()) == pytest.approx(1)
    assert status["predicted_std"] == 0  # `random` recommends what it measured, once
    assert "recommended:" in mixopt("status", tmp_path / "runs" / "mine").out
    row = mixopt("predict", study, "--mixture", "d0=0.5,d1=0.5", "--json").data["predictions"][0]
    assert set(row) >= {"mean/loss/e0", "std/loss/e1", "mean/objective", "std/objective"}


def test_what_tell_prints_names_best_and_recommended_mixture_with_std(tmp_path):
    text = mixopt("tell", study_file(tmp_path), "--runs", write(tmp_path / "runs.csv", own_runs(5))).out
    assert "5 runs told, 5 of them new ones of your own, 0 failed; 0 were known already" in text
    assert re.search(r"^best measured: objective \d", text, flags=re.MULTILINE)
    assert re.search(r"^recommended: d\d 0\.\d+.*; objective [\d.]+ ± [\d.e-]+ at large$", text, flags=re.MULTILINE)


# --- wrong input ----------------------------------------------------------------


def refused(answer, *parts, code=2):
    assert (answer.code, answer.out) == (code, ""), answer.err
    errors = [line for line in answer.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, answer.err
    assert [part for part in parts if part not in answer.err] == [], answer.err


def changed(changes, num=3):
    rows = own_runs(num)
    rows[-1] |= changes
    return rows


@pytest.mark.parametrize(
    ("rows", "parts"),
    [
        (changed({"fidelity": "huge"}), ["run 'mine-2'", "unknown rung 'huge'; the ladder has small, large"]),
        (changed({"weight/d0": 7.0}), ["mine-2", "weights must sum to 1"]),
        (changed({"loss/e0": "low"}), ["column 'loss/e0' must hold numbers", "'low'"]),
        (changed({"run": "mine-0"}), ["every run must be there once, twice or more is mine-0"]),
        (changed({"run": "search-004"}), ["run 'search-004'", "this study suggested no such run"]),
        ([{"run": "a", "fidelity": "large", "weight/law": 1.0, "loss/e0": 1.0}], ["run 'a'", "unknown domain 'law'"]),
        ([{"run": "a", "fidelity": "large", "weight/d0": 1.0}], ["expected a column loss/<name>"]),
        ([{"fidelity": "large", "weight/d0": 1.0, "loss/e0": 1.0}], ["expected a column run"]),
    ],
)  # fmt: skip
def test_a_table_with_a_wrong_row_is_refused_whole(tmp_path, rows, parts):
    study = study_file(tmp_path)
    refused(mixopt("tell", study, "--runs", write(tmp_path / "runs.csv", rows)), *parts)
    assert not RunDirectory(tmp_path / "runs" / "mine").ledger.exists()


def test_a_conflicting_row_leaves_the_ledger_as_it_was(tmp_path):
    study = study_file(tmp_path)
    mixopt("tell", study, "--runs", write(tmp_path / "runs.csv", own_runs(2)))
    ledger = RunDirectory(tmp_path / "runs" / "mine").ledger
    before = ledger.read_bytes()
    rows = own_runs(3)
    rows[0]["loss/e1"] = 9.0
    answer = mixopt("tell", study, "--runs", write(tmp_path / "more.csv", rows))
    refused(answer, "nothing was recorded", "run 'mine-0'", "loss/e1 was told as", "now as 9")
    assert ledger.read_bytes() == before


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["tell", "mine.yaml", "--runs", "none.csv"], ["none.csv", "correct the path"]),
        (["tell", "none.yaml", "--runs", "none.csv"], ["no study file at none.yaml"]),
        (["suggest", "mine.yaml", "--out", "next.txt"], ["--out", ".csv or .parquet"]),
        (["suggest", "mine.yaml", "--out", "nowhere/next.csv"], ["there is no folder nowhere"]),
        (["suggest", "mine.yaml", "--out", "-", "--json"], ["--json writes to stdout too"]),
        (["suggest", "mine.yaml", "--candidates", "none.csv"], ["none.csv", "correct the path"]),
        (["run", "mine.yaml"], ["use mixopt suggest and mixopt tell"]),
        (["check", "mine.yaml"], ["use mixopt suggest and mixopt tell"]),
    ],
)
def test_wrong_use_is_refused_and_nothing_is_begun(tmp_path, words, parts):
    study_file(tmp_path)
    refused(mixopt(*words), *parts)
    assert not (tmp_path / "runs").exists() or list((tmp_path / "runs").rglob("study.jsonl")) == []


@pytest.mark.parametrize("words", [["suggest"], ["tell", "--runs", "none.csv"]])
def test_a_study_that_mixopt_trains_is_not_told(tmp_path, words):
    study = small_study(tmp_path)
    refused(mixopt(words[0], study, *words[1:]), "mixopt trains its runs itself; use mixopt run")


def test_a_study_that_another_process_holds_is_left_alone(tmp_path):
    study = study_file(tmp_path)
    with RunDirectory(tmp_path / "runs" / "mine").locked():
        refused(mixopt("suggest", study), "another mixopt", code=1)


# --- python -----------------------------------------------------------------------


def test_ask_and_tell_start_neither_ray_nor_mlflow_nor_read_datasets():
    code = (
        "from mixopt.experiments.external import ExternalStudy\n"
        "study = ExternalStudy.create(domains=['a', 'b'], ladder={'x': 1}, objective='mean(loss/*)')\n"
        "[study.tell(s.run, losses={'e': s.weights['a']}) for s in study.ask(2)]\n"
        "study.recommend()\n"
        "import json, sys; print(json.dumps([n for n in ('ray', 'mlflow', 'datasets') if n in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


@pytest.mark.slow
def test_the_example_of_the_page_on_ask_and_tell_finds_a_good_mixture(capsys):
    page = (ROOT / "docs" / "ask-tell.md").read_text(encoding="utf-8")
    example = re.search(r"^```python\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)[1]
    names = {}
    exec(compile(example, "ask-tell.md", "exec"), names)  # the page is ours
    assert "web" in capsys.readouterr().out
    chosen = names["train"](names["best"].mixture.as_dict(), "1b")
    assert sum(chosen.values()) / 2 < 1.55  # the best mixture has 1.5017, an even one 1.5917
