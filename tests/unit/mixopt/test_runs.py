"""Runs tables: what they check, what reading changes and refuses, what they say as history."""

import numpy as np
import pandas as pd
import pytest

from mixopt import ConfigError, Status
from mixopt.runs import RunsTable, concat, read_mixtures, read_runs, write_runs

NAN = float("nan")


def table(**fields):
    """Two cheap runs and a dear one over two domains; the second has failed."""
    values = {
        "domains": ("web", "code"),
        "runs": ("a", "b", "c"),
        "fidelities": ("small", "small", "large"),
        "weights": [[0.5, 0.5], [1.0, 0.0], [0.25, 0.75]],
        "columns": {"loss/x": np.array([3.0, NAN, 2.5]), "score/q": np.array([0.5, NAN, NAN])},
        "costs": np.array([1.0, 1.0, 4.0]),
        **fields,
    }
    return RunsTable(**values)


def write_frame(folder, drop=(), name="runs.csv", **columns):
    """A good table of three runs as a CSV file, with columns replaced, added or dropped."""
    good = {
        "run": ["a", "b", "c"],
        "fidelity": ["small", "small", "large"],
        "cost": [1, 1, 4],
        "weight/web": [0.5, 1.0, 0.25],
        "weight/code": [0.5, 0.0, 0.75],
        "loss/x": [3.0, None, 2.5],
    }
    frame = pd.DataFrame({key: value for key, value in {**good, **columns}.items() if key not in drop})
    path = folder / name
    frame.to_csv(path, index=False)
    return path


# --- reading -----------------------------------------------------------------


def test_a_table_that_pandas_wrote_is_read_as_it_is(tmp_path):
    path = write_frame(tmp_path, seed=[1, None, 3], parent=[None, None, "a"], **{"noise/x": [0.1, None, 0.2]})
    runs = read_runs(path)
    assert (runs.domains, runs.runs, runs.fidelities) == (("web", "code"), ("a", "b", "c"), ("small", "small", "large"))
    assert runs.weights.tolist() == [[0.5, 0.5], [1.0, 0.0], [0.25, 0.75]]
    assert runs.columns["loss/x"].tolist()[::2] == [3.0, 2.5]
    assert np.isnan(runs.columns["loss/x"][1])
    assert (runs.seeds, runs.parents) == ((1, None, 3), (None, None, "a"))
    assert runs.noise["loss/x"].tolist()[::2] == [0.1, 0.2]
    assert runs.notes == ()


def test_a_parquet_file_with_ids_as_numbers_is_a_table_too(tmp_path):
    path = tmp_path / "runs.parquet"
    pd.DataFrame(
        {"run": [7, 8], "fidelity": ["t", "t"], "cost": [1, 1], "weight/a": [1, 1], "loss/x": [1.5, None]}
    ).to_parquet(path)
    runs = read_runs(path)
    assert runs.runs == ("7", "8")
    assert runs.columns["loss/x"][0] == 1.5


def test_missing_columns_get_defaults_that_are_named(tmp_path):
    runs = read_runs(write_frame(tmp_path, drop=("fidelity", "cost"), role=["x"] * 3, objective=[1, 2, 3]))
    assert set(runs.fidelities) == {"target"}
    assert runs.costs.tolist() == [1, 1, 1]
    text = "; ".join(runs.notes)
    for part in ("no column fidelity", "called target", "no column cost: 1 was taken", "role, objective"):
        assert part in text


@pytest.mark.parametrize(("tokens", "costs"), [([10, 10, 100], [20, 20, 200]), ([10, None, 100], [1, 1, 1])])
def test_a_missing_cost_is_params_times_tokens_where_all_rows_have_both(tmp_path, tokens, costs):
    assert read_runs(write_frame(tmp_path, drop=("cost",), params=[2] * 3, tokens=tokens)).costs.tolist() == costs


def test_rows_that_nearly_sum_to_one_are_normalized_and_counted(tmp_path):
    runs = read_runs(write_frame(tmp_path, **{"weight/web": [0.509, 1.0, 0.24]}))
    assert runs.weights[0] == pytest.approx([0.509 / 1.009, 0.5 / 1.009])
    assert runs.weights[1].tolist() == [1.0, 0.0]
    assert runs.notes == ("normalized the weights of 2 of 3 rows, which summed to 0.99 to 1.009",)


def test_noise_may_name_its_column_with_or_without_the_prefix(tmp_path):
    runs = read_runs(write_frame(tmp_path, **{"score/q": [1, 2, 3], "noise/x": [1, 1, 1], "noise/score/q": [2, 2, 2]}))
    assert {name: values[0] for name, values in runs.noise.items()} == {"loss/x": 1, "score/q": 2}


def test_the_frame_of_a_study_can_be_read(tmp_path):
    runs = read_runs(write_frame(tmp_path, run=["s-1@low", "s-1@top", "s-2@top"], parent=[None, None, "s-1"]))
    assert runs.parents == (None, None, "s-1")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"drop": ("run",)}, ("column run",)),
        ({"drop": ("weight/web", "weight/code")}, ("weight/<domain>", "cost")),
        ({"drop": ("loss/x",)}, ("loss/<name>", "score/<name>")),
        ({"run": ["a", "b", "a"]}, ("every run must be there once", "is a;")),
        ({"run": ["a", None, "c"]}, ("every run needs a name",)),
        ({"fidelity": ["s", "", "s"]}, ("every fidelity needs a name",)),
        ({"loss/x": ["3", "bad", "2"]}, ("'loss/x'", "'bad'", "row 2")),
        ({"seed": [1, 2.5, 3]}, ("'seed'", "whole numbers", "row 2")),
        ({"weight/web": [0.5, 1.0, -0.25]}, ("weight/web", "row 3 (c)")),
        ({"weight/web": [0.5, None, 0.25]}, ("weight/web", "row 2 (b)")),
        ({"weight/web": [0.5, 1.0, 0.3]}, ("sum to 1", "got 1.05", "row 3 (c)", "not percentages")),
        ({"loss/x": [3.0, np.inf, 2.5]}, ("loss/x", "finite", "row 2 (b)")),
        ({"cost": [1, 0, 1]}, ("cost must be positive", "row 2 (b)")),
        ({"cost": [1, None, 1]}, ("cost must be positive", "row 2 (b)")),
        ({"noise/x": [1, -1, 1]}, ("noise/loss/x", "row 2 (b)")),
        ({"noise/y": [1, 1, 1]}, ("noise/y", "no such column")),
        ({"noise/x": [1, 1, 1], "noise/loss/x": [1, 1, 1]}, ("noise/loss/x", "once")),
        ({"noise/x": [1, 1, 1], "score/x": [1, 1, 1]}, ("noise/x", "loss/x and score/x")),
        ({"parent": [None, None, "z"]}, ("parent", "row 3 (c)")),
        ({"tokens": [1, -5, None]}, ("tokens", "row 2 (b)")),
        ({"seed": [1, 2**63, 3]}, ("64 bits", "row 2 (b)")),
    ],
)
def test_what_is_wrong_is_one_message_with_file_column_and_rows(tmp_path, change, words):
    path = write_frame(tmp_path, **change)
    with pytest.raises(ConfigError) as error:
        read_runs(path)
    assert str(error.value).count(str(path)) == 1
    for word in words:
        assert word in str(error.value)


def test_a_long_list_of_wrong_rows_is_cut(tmp_path):
    path = tmp_path / "runs.csv"
    pd.DataFrame({"run": range(9), "weight/a": [2.0] * 9, "loss/x": [1.0] * 9}).to_csv(path, index=False)
    with pytest.raises(ConfigError, match=r"row 5 \(4\) and 4 more; correct them"):
        read_runs(path)


def test_a_list_of_candidates_needs_no_losses(tmp_path):
    path = write_frame(tmp_path, drop=("loss/x",))
    assert read_runs(path, measured=False).columns == {}


def test_writing_leaves_out_what_a_table_does_not_have(tmp_path):
    write_runs(table(), tmp_path / "runs.csv")
    assert (tmp_path / "runs.csv").read_text().splitlines() == [
        "run,fidelity,cost,weight/web,weight/code,loss/x,score/q",
        "a,small,1.0,0.5,0.5,3.0,0.5",
        "b,small,1.0,1.0,0.0,,",
        "c,large,4.0,0.25,0.75,2.5,",
    ]


# --- lists of mixtures -------------------------------------------------------


def test_mixtures_come_in_the_order_of_the_runs_domains_and_missing_ones_have_no_weight(tmp_path):
    path = write_frame(tmp_path, **{"loss/x": ["not", "looked", "at"], "weight/other": [0, 0, 0]})
    names, mixtures, notes = read_mixtures(path, ("code", "books", "web"))
    assert names == ("a", "b", "c")
    assert [m.weights.tolist() for m in mixtures] == [[0.5, 0, 0.5], [0, 0, 1.0], [0.75, 0, 0.25]]
    assert notes == ()


def test_a_domain_that_the_runs_do_not_know_may_have_no_weight(tmp_path):
    with pytest.raises(ConfigError, match=r"runs.csv: weight/code must be 0.*web.*row 1 \(a\), row 3 \(c\); drop"):
        read_mixtures(write_frame(tmp_path), ("web",))


# --- the table ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weights": [[0.5, 0.5], [1, 0], [0.25, 0.76]]}, "must sum to 1"),
        ({"weights": [[1.0], [1.0], [1.0]]}, "runs by domains"),
        ({"costs": [1.0, 1.0]}, "3 costs"),
        ({"seeds": (1,)}, "3 seeds"),
        ({"columns": {"x": np.zeros(3)}}, "loss/<name> or score/<name>, got x"),
        ({"columns": {"loss/": np.zeros(3)}}, "every column needs a name of printable text"),
        ({"noise": {"loss/y": np.zeros(3)}}, "got loss/y"),
        ({"domains": ("web", "web")}, "every domain must be there once"),
        ({"runs": ("a", "b", "c\n")}, "every run needs a name"),
    ],
)
def test_a_table_is_checked_when_it_is_made(change, words):
    with pytest.raises(ConfigError, match=words):
        table(**change)


def test_a_table_without_runs_is_none():
    with pytest.raises(ConfigError, match="at least one run"):
        table().select([])


def test_arrays_of_a_table_are_read_only():
    with pytest.raises(ValueError, match="read-only"):
        table().columns["loss/x"][0] = 1


def test_a_run_without_numbers_is_a_failed_trial_without_observation():
    history = table().history()
    assert [trial.status for trial in history.trials] == [Status.DONE, Status.ABANDONED, Status.DONE]
    assert [obs.trial for obs in history.observations] == ["a", "c"]
    assert history.observations[0].columns() == {"loss/x": 3.0, "score/q": 0.5}
    assert history.observations[1].columns() == {"loss/x": 2.5}


def test_the_ladder_is_priced_in_runs_of_the_target():
    assert [(rung.name, rung.cost) for rung in table().ladder("large")] == [("small", 0.25), ("large", 1.0)]
    assert [(rung.name, rung.cost) for rung in table().ladder("small")] == [("large", 4.0), ("small", 1.0)]


def test_what_is_required_and_missing_is_named():
    runs = table()
    runs.require(["loss/x"], fidelity="large")
    with pytest.raises(ConfigError, match=r"loss/x .* row 2 \(b\); drop"):
        runs.require(["loss/x"])
    with pytest.raises(ConfigError, match=r"score/q .* row 3 \(c\); drop"):
        runs.require(["score/q"], fidelity="large")
    with pytest.raises(ConfigError, match="unknown column 'loss/y'; the table has loss/x, score/q"):
        runs.require(["loss/y"])


def test_selected_rows_forget_a_parent_that_is_left_out():
    runs = table(parents=(None, "a", "a"), seeds=(1, 2, 3), params=np.array([1.0, 2.0, NAN]))
    chosen = runs.select([2, 1])
    assert (chosen.runs, chosen.parents, chosen.seeds) == (("c", "b"), (None, None), (3, 2))
    assert chosen.params[1] == 2.0
    assert runs.select([2, 0]).parents == ("a", None)


def test_costs_can_be_given_per_rung():
    assert table().priced({"large": 60}).costs.tolist() == [1, 1, 60]
    with pytest.raises(ConfigError, match="unknown fidelity 'huge'; the table has small, large"):
        table().priced({"huge": 1})


def test_joined_tables_keep_the_first_order_of_domains_and_fill_unknown_columns():
    other = RunsTable(
        ("code", "web"), ("d",), ("large",), [[0.25, 0.75]], {"loss/y": np.ones(1)}, np.array([4.0]), seeds=(9,)
    )
    both = concat([table(), other])
    assert both.runs == ("a", "b", "c", "d")
    assert both.weights[3].tolist() == [0.75, 0.25]
    assert list(both.columns) == ["loss/x", "score/q", "loss/y"]
    assert np.isnan(both.columns["loss/x"][3])
    assert np.isnan(both.columns["loss/y"][:3]).all()
    assert both.seeds == (None, None, None, 9)


def test_tables_with_a_common_run_or_other_domains_are_not_joined():
    with pytest.raises(ConfigError, match="every run must be there once, twice or more is a, b, c"):
        concat([table(), table()])
    with pytest.raises(ConfigError, match="same domains, only one of two has books, code"):
        concat([table(), table(domains=("web", "books"))])
