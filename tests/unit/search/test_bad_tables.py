"""Tables as they come: constant, torn, tiny, wide. Finite numbers or a ConfigError, never another error."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mixopt import ConfigError, Mixture
from mixopt.experiments.from_runs import predict_from_runs
from mixopt.runs_table import RunsTable
from mixopt.search.replay import Case, replay

torch.set_num_threads(1)

NAN = float("nan")


def a_table(num=12, num_domains=3, num_columns=2, *, weights=None, rungs=("low", "top")):
    """Runs at alternating rungs, smooth columns."""
    rng = np.random.default_rng(0)
    draws = rng.dirichlet(np.ones(num_domains), num) if weights is None else np.asarray(weights)
    names = tuple(rungs[i % len(rungs)] for i in range(len(draws)))
    low = np.array(names) == "low"
    values = 3 + np.sin(draws @ rng.normal(size=(draws.shape[1], num_columns))) + 0.1 * low[:, None]
    return RunsTable(
        tuple(f"d{i}" for i in range(draws.shape[1])),
        tuple(f"r{i}" for i in range(len(draws))),
        names,
        draws,
        {f"loss/c{j}": values[:, j] for j in range(num_columns)},
        np.where(low, 0.1, 1.0),
    )


def changed(change, *columns, table=None):
    """The table with columns (all by default) changed, a function of the values and the row numbers."""
    table = table or a_table()
    rows = np.arange(len(table))
    return replace(
        table,
        columns={n: change(v, rows) if not columns or n in columns else v for n, v in table.columns.items()},
    )


def without_a_domain():
    draws = np.random.default_rng(1).dirichlet(np.ones(2), 12)
    return a_table(weights=np.column_stack([draws[:, 0], np.zeros(12), draws[:, 1]]))


def with_twins():
    """Rows 0 and 2 and rows 1 and 3 are one mixture each, with different losses."""
    draws = np.random.default_rng(1).dirichlet(np.ones(3), 12)
    draws[2:4] = draws[:2]
    return changed(lambda v, rows: v + 0.3 * (rows < 2), table=a_table(weights=draws))


BAD = {
    "two runs": a_table(2),
    "a constant column": changed(lambda v, rows: np.full(len(v), 3.0), "loss/c0"),
    "only constant columns": changed(lambda v, rows: np.full(len(v), 3.0)),
    "a domain with weight 0 everywhere": without_a_domain(),
    "equal mixtures with different losses": with_twins(),
    "one mixture only": changed(lambda v, rows: v + 0.1 * rows, table=a_table(weights=np.full((12, 3), 1 / 3))),
    "vertices only": a_table(weights=np.tile(np.eye(3), (4, 1))),
    "failed runs": changed(lambda v, rows: np.where(np.isin(rows, (0, 1, 5)), NAN, v)),
    "one target run that did not fail": changed(lambda v, rows: np.where((rows % 2 == 1) & (rows != 11), NAN, v)),
    "a column that half of the runs lack": changed(lambda v, rows: np.where(rows < 6, NAN, v), "loss/c0"),
    "a column that no cheap run has": changed(lambda v, rows: np.where(rows % 2 == 0, NAN, v), "loss/c0"),
    "a run that went astray": changed(lambda v, rows: np.where(rows == 1, 1e6, v)),
    "large losses": changed(lambda v, rows: 1e9 * v),
    "tiny losses": changed(lambda v, rows: 1e-9 * v),
    "noise that drowns all": replace(a_table(), noise={"loss/c0": np.full(12, 1e3)}),
    "rungs at the same price": replace(a_table(), costs=np.ones(12)),
    "a cheap rung that is dearer than the target": replace(a_table(), costs=np.where(np.arange(12) % 2, 1.0, 5.0)),
    "one domain": a_table(num_domains=1),
    "two domains": a_table(num_domains=2),
    "sixty-four domains": a_table(num_domains=64),
}


@pytest.fixture(params=BAD)
def table(request):
    return BAD[request.param]


def asked(table):
    return [Mixture.uniform(table.domains), Mixture.vertex(table.domains, "d0")]


def predicted(table, **settings):
    """Predictions; an assertion unless all numbers are finite and deviations positive."""
    found = predict_from_runs(table, asked(table), **settings)
    assert all(np.isfinite(values).all() for values in [*found.mean.values(), *found.std.values()])
    assert all((values > 0).all() for values in found.std.values())
    return found


def test_a_bad_table_can_be_searched(table):
    found = replay(Case.of(table, "top", "mean(loss/*)"), "mfbo", seed=0, budget=3.0, max_decisions=8)
    assert found.decisions
    assert np.isfinite([[d.regret, d.recommendation_regret] for d in found.decisions]).all()


def test_a_bad_table_predicts(table):
    predicted(table)
    predicted(table, objective="max(loss/*)")


def test_one_run_predicts_its_own_value_everywhere_and_cannot_be_searched():
    alone = a_table(1, rungs=("top",))
    found = predicted(alone)
    assert found.mean["loss/c0"] == pytest.approx(alone.columns["loss/c0"][0], abs=0.2)
    with pytest.raises(ConfigError, match="at least 2 runs"):
        Case.of(alone, "top", "mean(loss/*)")


def test_a_constant_column_is_predicted_as_constant():
    found = predicted(BAD["a constant column"])
    assert np.allclose(found.mean["loss/c0"], 3.0, atol=0.01)


def test_between_runs_that_differ_at_one_mixture_the_prediction_lies_between():
    table = BAD["equal mixtures with different losses"]
    twins = [Mixture(table.domains, table.weights[row]) for row in (1, 3)]
    found = predict_from_runs(table, twins)
    low, high = sorted(table.columns["loss/c0"][[1, 3]])
    assert low < found.mean["loss/c0"][0] < high
    assert found.mean["loss/c0"][0] == found.mean["loss/c0"][1]


def test_a_domain_without_weight_is_predicted_with_less_certainty():
    table = BAD["a domain with weight 0 everywhere"]
    known, unknown = ({"d0": 0.5, "d2": 0.5}, {"d0": 0.3, "d1": 0.5, "d2": 0.2})
    found = predict_from_runs(table, [Mixture.from_mapping(list(m), m).over(table.domains) for m in (known, unknown)])
    assert found.std["loss/c0"][1] > found.std["loss/c0"][0]


def test_failed_runs_teach_nothing():
    table = BAD["failed runs"]
    rows = [row for row in range(len(table)) if row not in (0, 1, 5)]
    one, two = predicted(table), predicted(table.select(rows))
    assert np.array_equal(one.mean["objective"], two.mean["objective"])


def test_forty_columns_of_six_runs_predict():
    found = predicted(a_table(6, 3, 40))
    assert len(found.mean) == 41


@pytest.mark.parametrize("table", [a_table(8, rungs=("low",)), BAD["failed runs"]], ids=["no rung", "other rung"])
def test_a_rung_without_runs_is_answered_from_the_dearest_and_says_so(table):
    found = predicted(table, fidelity="huge")
    assert found.fidelity == table.fidelities[-1]
    assert any("no finished run at fidelity huge" in note for note in found.notes)


def test_a_target_whose_runs_all_failed_is_answered_from_the_cheap_rung_and_cannot_be_searched():
    table = changed(lambda v, rows: np.where(rows % 2 == 1, NAN, v))
    found = predicted(table, fidelity="top")
    assert found.fidelity == "low"
    assert any("no finished run at fidelity top" in note for note in found.notes)
    with pytest.raises(ConfigError, match="no run at top has a finite objective"):
        Case.of(table, "top", "mean(loss/*)")


def test_a_table_without_any_number_is_refused():
    with pytest.raises(ConfigError, match="no run of the table has a number"):
        predicted(changed(lambda v, rows: np.full(len(v), NAN)))


def test_columns_of_which_no_run_has_both_are_predicted_and_their_mean_cannot_be_searched():
    halves = {"loss/c0": 0, "loss/c1": 1}
    table = a_table(rungs=("top",))
    columns = {n: np.where(np.arange(12) % 2 == part, table.columns[n], NAN) for n, part in halves.items()}
    torn = replace(table, columns=columns)
    predicted(torn)
    with pytest.raises(ConfigError, match="finite objective"):
        Case.of(torn, "top", "mean(loss/*)")


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_losses_whose_squares_overflow_are_predicted_or_refused():
    table = changed(lambda v, rows: 1e200 * v)
    try:
        predicted(table)
        replay(Case.of(table, "top", "mean(loss/*)"), "mfbo", seed=0, budget=3.0, max_decisions=4)
    except ConfigError:
        pass
