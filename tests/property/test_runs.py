"""Whatever a runs table holds, what is written is what is read."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixopt.layouts import read_olmix, read_regmix, write_olmix, write_regmix
from mixopt.runs import RunsTable, concat, read_runs, write_runs

LAW = settings(max_examples=60, deadline=None)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
POSITIVE = st.floats(min_value=0, exclude_min=True, allow_infinity=False)
OR_MISSING = st.one_of(st.just(float("nan")), NUMBERS)
# Any printable text: commas, quotes, signs and other alphabets are in names of domains and tasks.
NAMES = st.text(st.characters(exclude_categories=["C", "Z"], include_characters=" "), min_size=1, max_size=8).filter(
    lambda name: name == name.strip() and name.isprintable()
)
PLAIN = st.from_regex(r"[a-z][a-z0-9_]{0,5}", fullmatch=True)


def unique(names, num):
    return st.lists(names, min_size=num, max_size=num, unique=True)


@st.composite
def weights(draw, num, k):
    """Rows on the simplex, with zeros."""
    raw = np.array(draw(st.lists(st.lists(st.integers(0, 1000), min_size=k, max_size=k), min_size=num, max_size=num)))
    raw[raw.sum(-1) == 0] = 1
    return raw / raw.sum(-1, keepdims=True)


@st.composite
def tables(draw, runs=NAMES, names=NAMES, rungs=NAMES, optional=True):
    num, k = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    ids, ladder = draw(unique(runs, num)), draw(st.lists(rungs, min_size=1, max_size=2))
    columns = [f"loss/{n}" for n in draw(unique(names, draw(st.integers(1, 2))))]
    columns += [f"score/{n}" for n in draw(unique(names, draw(st.integers(0, 2))))] if optional else []

    def numbers(values):
        return np.array(draw(st.lists(values, min_size=num, max_size=num)), dtype=np.float64)

    def per_run(values):
        return draw(st.one_of(st.just(()), st.tuples(*[st.one_of(st.none(), values)] * num))) if optional else ()

    missing = st.just(float("nan"))
    sizes = st.one_of(missing, POSITIVE)
    noise = st.one_of(missing, st.just(0.0), POSITIVE)
    return RunsTable(
        domains=tuple(draw(unique(names, k))),
        runs=tuple(ids),
        fidelities=tuple(draw(st.lists(st.sampled_from(ladder), min_size=num, max_size=num))),
        weights=draw(weights(num, k)),
        columns={name: numbers(OR_MISSING) for name in draw(st.permutations(columns))},
        costs=numbers(POSITIVE),
        noise={name: numbers(noise) for name in columns if optional and draw(st.booleans())},
        seeds=per_run(st.integers(-(2**63), 2**63 - 1)),
        parents=per_run(st.sampled_from(ids)),
        params=numbers(sizes) if optional and draw(st.booleans()) else None,
        tokens=numbers(sizes) if optional and draw(st.booleans()) else None,
    )


def bits(values):
    """An array up to the last bit, all NaN alike."""
    return None if values is None else ["nan" if np.isnan(v) else np.float64(v).tobytes() for v in np.ravel(values)]


def plain(table, *, leave=()):
    """All that a table holds but its notes, as comparable data."""
    content = {
        **{name: getattr(table, name) for name in ("domains", "runs", "fidelities", "seeds", "parents")},
        **{name: bits(getattr(table, name)) for name in ("weights", "costs", "params", "tokens")},
        **{name: [(n, bits(v)) for n, v in getattr(table, name).items()] for name in ("columns", "noise")},
    }
    return {name: value for name, value in content.items() if name not in leave}


@LAW
@given(tables(), st.sampled_from([".csv", ".parquet"]))
def test_reading_what_was_written_gives_every_bit_back(table, suffix):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"runs{suffix}"
        write_runs(table, path)
        again = read_runs(path)
    assert plain(again) == plain(table)
    assert again.notes == ()


@LAW
@given(tables(), st.data())
def test_a_table_taken_apart_and_joined_is_the_table(table, data):
    cut = data.draw(st.integers(0, len(table)))
    order = data.draw(st.permutations(range(len(table))))
    parts = [table.select(part) for part in (order[:cut], order[cut:]) if part]
    joined = concat(parts).select(np.argsort(order))
    # A parent is forgotten when it is left out; a list without any entry is the same as no list.
    assert plain(joined, leave=("parents", "seeds")) == plain(table, leave=("parents", "seeds"))
    assert joined.seeds == table.seeds or not any(seed is not None for seed in table.seeds)


@LAW
@given(tables(), st.data())
def test_the_order_of_domains_says_nothing_about_a_run(table, data):
    order = data.draw(st.permutations(range(len(table.domains))))
    moved = RunsTable(
        tuple(table.domains[i] for i in order), table.runs, table.fidelities, table.weights[:, order], {}, table.costs
    )
    row = data.draw(st.integers(0, len(table) - 1))
    assert moved.trial(row).mixture.over(table.domains) == table.trial(row).mixture


@LAW
@given(
    tables(runs=st.integers(0, 9999).map(str), names=PLAIN, rungs=st.sampled_from(["1m", "60m", "1B"]), optional=False)
)
def test_regmix_files_hold_what_a_table_of_losses_holds(table):
    split = {"1m": "train", "60m": "test", "1B": "test"}
    runs = tuple(f"{split[rung]}-{i}@{rung}" for i, rung in zip(table.runs, table.fidelities, strict=True))
    table = RunsTable(table.domains, runs, table.fidelities, table.weights, table.columns, table.costs)
    costs = dict(zip(table.fidelities, table.costs.tolist(), strict=True))
    table = table.priced(costs)
    with tempfile.TemporaryDirectory() as folder:
        write_regmix(table, Path(folder))
        again = read_regmix(Path(folder), costs)
    order = [again.runs.index(run) for run in table.runs]
    assert plain(again.select(order)) == plain(table)


@LAW
@given(tables(names=NAMES.filter(lambda n: n not in ("run", "run_id", "name", "index")), optional=False))
def test_olmix_files_hold_what_one_rung_of_losses_holds(table):
    rung = table.fidelities[0]
    table = table.select([i for i, name in enumerate(table.fidelities) if name == rung]).priced({rung: 3.0})
    with tempfile.TemporaryDirectory() as folder:
        write_olmix(table, Path(folder))
        again = read_olmix(Path(folder), fidelity=rung, cost=3.0)
    assert plain(again) == plain(table)


@LAW
@given(tables())
def test_a_history_has_every_finite_number_of_the_table(table):
    history = table.history()
    known = {(obs.trial, name): value for obs in history.observations for name, value in obs.columns().items()}
    for name, values in table.columns.items():
        for run, value in zip(table.runs, values, strict=True):
            assert known.get((run, name), float("nan")) == pytest.approx(value, rel=0, abs=0, nan_ok=True)
    assert [trial.id for trial in history.trials] == list(table.runs)
