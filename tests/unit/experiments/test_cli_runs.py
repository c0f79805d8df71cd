"""`convert`, and `predict` from a table, as a person uses them."""

import csv

import pytest

from mixopt.runs import read_runs, write_runs
from tests.e2e.command_line import mixopt
from tests.unit.experiments.test_from_runs import DOMAINS, runs
from tests.unit.mixopt.test_layouts import olmix, regmix


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def rows_of(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "runs.csv"
    write_runs(runs(8, rungs=("small", "large")), path)
    return path


# --- convert -----------------------------------------------------------------


def test_a_clone_of_regmix_becomes_a_table_and_goes_back(tmp_path):
    (tmp_path / "data").mkdir()
    regmix(tmp_path / "data")
    data = mixopt("convert", "--from", "regmix", "data", "--out", "runs.csv", "--json").data
    assert (data["out"], data["files"], data["rows"]) == ("runs.csv", ["runs.csv"], 6)
    assert data["rungs"] == [{"name": "1m", "rows": 4, "cost": 1.0}, {"name": "60m", "rows": 2, "cost": 60.0}]
    assert (data["domains"], data["columns"]) == (["arxiv", "pile_cc"], ["loss/pile_cc"])
    assert len(data["notes"]) == 3
    back = mixopt("convert", "runs.csv", "--to", "regmix", "--out", "back", "--json").data
    assert len(back["files"]) == 6
    assert back["notes"] == []
    again = mixopt("convert", "--from", "regmix", "back", "--out", "again.csv")
    assert again.code == 0
    assert (tmp_path / "again.csv").read_text() == (tmp_path / "runs.csv").read_text()


def test_notes_are_logged_once_and_the_result_is_on_stdout(tmp_path):
    regmix(tmp_path, [("train", "1m")])
    answer = mixopt("convert", "--from", "regmix", ".", "--out", "runs.parquet")
    assert answer.out.splitlines()[0] == "wrote 2 runs, 2 domains and 1 columns to runs.parquet"
    assert answer.err.count("normalized the weights") == 1


def test_a_swarm_of_olmix_becomes_a_table_and_goes_back(tmp_path):
    (tmp_path / "swarm").mkdir()
    olmix(tmp_path / "swarm")
    words = ["--fidelity", "30m", "--cost", "30", "--score", "arc*", "--out", "runs.csv"]
    assert mixopt("convert", "--from", "olmix", "swarm", *words).code == 0
    table = read_runs(tmp_path / "runs.csv")
    assert (set(table.fidelities), table.costs.tolist()) == ({"30m"}, [30, 30])
    assert list(table.columns) == ["score/arc::olmes", "loss/mmlu (BPB v2)"]
    back = mixopt("convert", "runs.csv", "--to", "olmix", "--out", "back", "--json").data
    assert [path.rpartition("/")[2] for path in back["files"]] == ["ratios.csv", "metrics.csv"]
    assert "higher is better in arc::olmes" in back["notes"][0]


def test_tables_are_joined_priced_and_cut_to_a_rung(tmp_path, table):
    write_runs(runs(2, seed=5, rungs=("huge",)), tmp_path / "more.csv")
    words = ["--cost", "huge=100", "--cost", "large=20", "--out", "all.parquet", "--json"]
    data = mixopt("convert", table, "more.csv", *words).data
    assert {rung["name"]: (rung["rows"], rung["cost"]) for rung in data["rungs"]} == {
        "small": (8, 1.0), "large": (8, 20.0), "huge": (2, 100.0),
    }  # fmt: skip
    assert mixopt("convert", "all.parquet", "--fidelity", "huge", "--out", "cut.csv", "--json").data["rows"] == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["runs.csv", "--out", "runs.csv"], "is there already"),
        (["runs.csv", "--out", "new.txt"], "ends in .csv or .parquet"),
        (["runs.csv", "--out", "new.csv", "--from", "csv"], "--from: expected one of runs, regmix, olmix, got 'csv'"),
        (["runs.csv", "--out", "new.csv", "--to", "csv"], "--to: expected one of"),
        ([".", "--out", "new.csv"], "is a folder; say its layout with --from regmix or --from olmix"),
        (["runs.csv", "--out", "new.csv", "--score", "x"], "--score says which olmix metrics"),
        (["runs.csv", "--out", "new.csv", "--cost", "12"], "expected RUNG=NUMBER, as there may be several"),
        (["runs.csv", "--out", "new.csv", "--cost", "small=free"], "got 'small=free'"),
        (["runs.csv", "--out", "new.csv", "--cost", "small=-1"], "got 'small=-1'"),
        (["runs.csv", "--out", "new.csv", "--cost", "1b=2"], "unknown fidelity '1b'; the table has small, large"),
        (["runs.csv", "--out", "new.csv", "--fidelity", "1b"], "--fidelity: no run has '1b'; there are small, large"),
        (["runs.csv", "--out", "new", "--to", "olmix"], "one rung, the table has small, large; keep one (--fidelity"),
        (["runs.csv", "runs.csv", "--out", "new.csv"], "every run must be there once"),
        (["--from", "olmix", ".", "--out", "new.csv", "--cost", "a=1"], "all of rung target; give one number"),
        (["--from", "olmix", ".", "--out", "new.csv"], "ratios.csv: expected a file, there is none"),
        (["missing.csv", "--out", "new.csv"], "missing.csv: expected a file, there is none"),
    ],
)
def test_wrong_use_of_convert_is_one_message_and_writes_nothing(tmp_path, table, words, message):
    before = {path.name for path in tmp_path.iterdir()}
    answer = mixopt("convert", *words)
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith("error: ")
    assert message in answer.err
    assert {path.name for path in tmp_path.iterdir()} == before


def test_with_force_a_file_is_replaced(tmp_path, table):
    assert mixopt("convert", table, "--fidelity", "small", "--out", table, "--force").code == 0
    assert len(read_runs(table)) == 8


# --- predict -----------------------------------------------------------------


def test_predictions_of_a_table_of_mixtures_have_a_row_each(tmp_path, table):
    path = tmp_path / "next.csv"
    path.write_text("run,weight/books,weight/web,comment\nfirst,0.5,0.5,x\nsecond,0.0,1.0,y\n")
    words = ["--runs", table, "--mixtures", path, "--out", "pred.csv", "--objective", "max(loss/*)", "--json"]
    data = mixopt("predict", *words).data
    assert (data["fidelity"], data["objective"], data["rows"], data["notes"]) == ("large", "max(loss/*)", 2, [])
    rows = rows_of("pred.csv")
    assert [row["run"] for row in rows] == ["first", "second"]
    columns = [
        f"{kind}/{name}" for name in ("loss/web", "loss/code", "score/quiz", "objective") for kind in ("mean", "std")
    ]
    assert list(rows[0]) == ["run", *columns]
    shown = mixopt("predict", *words[:4], "--objective", "max(loss/*)", "--json").data["predictions"]
    assert [float(row["mean/loss/code"]) for row in rows] == [row["mean/loss/code"] for row in shown]


def test_typed_mixtures_can_be_predicted_from_a_table(table):
    mixture = f"{DOMAINS[0]}=0.5,{DOMAINS[2]}=0.5"
    answer = mixopt("predict", "--runs", table, "--mixture", mixture, "--fidelity", "small")
    assert "Predicted at rung small" in answer.out
    assert mixture in answer.out
    assert "loss/code" in answer.out


def test_a_rung_without_runs_is_answered_with_a_warning(table):
    answer = mixopt("predict", "--runs", table, "--mixture", "web=1", "--fidelity", "huge", "--json")
    assert answer.data["fidelity"] == "large"
    assert "no finished run at fidelity huge" in answer.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "expected a study or --runs TABLE, got neither"),
        (["study.yaml", "--runs", "runs.csv"], "expected a study or --runs TABLE, got both"),
        (["study.yaml", "--mixture", "web=1", "--objective", "loss/x"], "--objective does not go with a study"),
        (["study.yaml", "--mixtures", "runs.csv", "--out", "p.csv"], "--mixtures, --out does not go with a study"),
        (["study.yaml"], "at least one --mixture"),
        (["--runs", "runs.csv", "--dir", "x", "--mixture", "web=1"], "--dir does not go with a table of runs"),
        (["--runs", "runs.csv"], "expected --mixtures TABLE or --mixture"),
        (["--runs", "runs.csv", "--mixture", "web=0.5"], "sum to 1"),
        (["--runs", "runs.csv", "--mixture", "news=1"], "unknown domain 'news'"),
        (["--runs", "runs.csv", "--mixture", "web=1", "--objective", "loss/x"], "unknown column 'loss/x'"),
        (["--runs", "runs.csv", "--mixture", "web=1", "--out", "p.txt"], "ends in .csv or .parquet"),
        (["--runs", "runs.csv", "--mixture", "web=1", "--out", "runs.csv"], "is what is read"),
        (["--runs", "missing.csv", "--mixture", "web=1"], "missing.csv: expected a file"),
    ],
)
def test_wrong_use_of_predict_is_one_message(table, words, message):
    answer = mixopt("predict", *words)
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith("error: ")
    assert message in answer.err
