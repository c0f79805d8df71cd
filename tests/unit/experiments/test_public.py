"""The public set: what the card says of it, and replays that know its experts' scores."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from mixopt import ConfigError, StudyError
from mixopt.experiments import public
from mixopt.mde import MDE
from mixopt.runs import read_runs
from mixopt.scores_folder import load_scores
from tests.e2e.command_line import mixopt

TABLE, SCORES = "builtin:runs/proxies.csv", "builtin:runs/experts-0-top.zip"
TARGETS = ("loss/jargon", "loss/world_facts", "loss/python_heldout")
TASKS = {"mc_order", "mc_facts", "mc_cloze"}
ARCHIVES = sorted(path.stem for path in (Path(public.__file__).parent / "runs").glob("*.zip"))


@cache
def table():
    return read_runs(public.resolve(Path(TABLE)))


def named(seed, rung):
    return np.array([run.endswith(f"-{seed}@{rung}") for run in table().runs])


def test_the_table_holds_every_mixture_on_three_seeds_at_three_rungs():
    assert table().notes == ()
    assert len(table()) == 64 * 3 * 3
    for seed in range(3):
        for rung in ("low", "mid", "top"):
            weights = table().weights[named(seed, rung)]
            assert len(weights) == len(np.unique(weights, axis=0)) == 64
            assert np.array_equal(weights, table().weights[named(0, "top")])
    assert all(np.all(np.isfinite(values)) for values in table().columns.values())


def test_longer_runs_lose_less():
    low, mid, top = (
        np.mean([table().columns[c][named(0, rung)] for c in TARGETS], axis=0) for rung in ("low", "mid", "top")
    )
    # A mixture of hardly more than one domain overfits it.
    assert np.mean(low > mid) > 0.9
    assert np.mean(mid > top) > 0.9


@pytest.mark.parametrize("name", ARCHIVES)
def test_every_archive_is_a_checked_scores_folder_of_eight_experts(name):
    scores = load_scores(public.scores_folder(Path(f"builtin:runs/{name}.zip")), table().domains)
    sets = {score.passages.name for score in scores}
    assert sets >= {column.removeprefix("loss/") for column in table().columns if column.startswith("loss/")} - TASKS
    assert (sets >= TASKS) == (name == "experts-0-top")


def test_the_ensemble_ranks_mixtures_that_it_never_saw():
    mde = public.ground(table(), TARGETS, Path(SCORES), "top").predictor
    chosen = named(1, "top")
    predicted = mde.predict(table().weights[chosen], TARGETS).mean(axis=1)
    measured = np.mean([table().columns[column][chosen] for column in TARGETS], axis=0)
    assert spearmanr(predicted, measured).statistic > 0.9


def test_tasks_are_opened_only_where_the_objective_asks_for_them():
    assert not any(
        c.startswith("score/") for c in public.ground(table(), TARGETS, Path(SCORES), "top").predictor.columns
    )
    asked = public.ground(table(), ["score/mc_order"], Path(SCORES), "top").predictor.columns
    assert {"loss/mc_order", "score/mc_order"} <= set(asked)
    assert "score/mc_facts" not in asked


def test_a_folder_and_its_archive_say_the_same(tmp_path):
    folder = public.scores_folder(Path(SCORES))
    (tmp_path / "scores").symlink_to(folder)  # as a run directory has it
    one, other = (
        MDE(table().domains, load_scores(public.scores_folder(p), table().domains)) for p in (tmp_path, folder)
    )
    assert np.array_equal(one.predict(table().weights[:3], TARGETS), other.predict(table().weights[:3], TARGETS))


def test_what_is_no_archive_is_refused(tmp_path):
    (tmp_path / "x.zip").write_text("no zip")
    with pytest.raises(ConfigError, match="expected a scores folder, a run directory or a zipped"):
        public.scores_folder(tmp_path / "x.zip")
    with pytest.raises(ConfigError, match=r"no built-in runs at builtin:runs/x\.csv; there are .*proxies\.csv"):
        public.resolve(Path("builtin:runs/x.csv"))
    with pytest.raises(StudyError, match="rung mid"):
        public.ground(table(), TARGETS, Path(SCORES), "mid")


def test_a_replay_knows_the_scores_and_says_what_the_experts_cost(tmp_path):
    answer = mixopt(
        "replay", TABLE, "--scores", SCORES, "--target-fidelity", "top", "--objective", f"mean({', '.join(TARGETS)})",
        "--optimizers", "mde,random", "--budget", "3", "--seeds", "1", "--cache", tmp_path / "cache", "--json",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    assert {row["optimizer"] for row in answer.data["results"]} == {"mde", "random"}
    assert "8 experts at top cost 8 target runs" in json.dumps(answer.data["notes"])


def test_without_scores_a_replay_says_what_is_missing():
    answer = mixopt("replay", TABLE, "--target-fidelity", "top", "--objective", "loss/jargon", "--optimizers", "mde")
    assert answer.code == 2
    assert "give --scores" in answer.err
