import json
import subprocess
import sys
from dataclasses import replace

import pandas as pd
import pytest

from mixopt import (
    Contender,
    Domain,
    EvalSet,
    Ladder,
    Mixture,
    Observation,
    Recommendation,
    Role,
    Status,
    StudyChangedError,
    StudyError,
    Trial,
)
from mixopt.protocols import TrialResult
from mixopt.study import Header, Study

NAMES = ("a", "b")
HEADER = Header(
    name="small",
    seed=3,
    domains=(Domain("a", 1000, 10, 4000, "text-a"), Domain("b", 3000, 30, 9000, "text-b")),
    eval_sets=(EvalSet("x", 100, 400, fingerprint="text-x"), EvalSet("y", 100, 200, fingerprint="text-y")),
    ladder=Ladder.from_flops([("low", "m", 10, 100, 1.0), ("top", "m", 10, 1000, 10.0)], 0.1),
    tokenizer="t0",
    objective={"expression": "mean(loss/*)", "unit": "nats_per_token"},
    budget=4.0,
    experts_fidelity="top",
)


def a_trial(trial_id, weights=(0.5, 0.5), fidelity="top", role=Role.SEARCH, **fields):
    return Trial(trial_id, role, Mixture(NAMES, weights), fidelity, 7, "mfbo", **fields)


def done(trial_id, value=2.0, fidelities=("low", "top")):
    losses = [{"x": value + 1.0 * (rung == "low"), "y": value} for rung in fidelities]
    observations = tuple(
        Observation(trial_id, rung, loss, cost=0.5) for rung, loss in zip(fidelities, losses, strict=True)
    )
    return TrialResult(trial_id, Status.DONE, observations)


def a_study(folder, header=HEADER):
    """Two finished trials, one on `b` alone, and one that runs."""
    study = Study(folder)
    study.begin(header)
    study.propose([a_trial("t0"), a_trial("t1", (0.0, 1.0)), a_trial("t2", (0.9, 0.1))])
    study.set_status(["t0", "t1", "t2"], Status.RUNNING)
    study.finish(done("t0", 2.0))
    study.finish(done("t1", 1.5))
    return study


def recommend(study):
    mixture = Mixture(NAMES, [0.25, 0.75])
    contender = Contender("recommended", mixture, {"objective": 1.0}, {"objective": 0.1})
    study.recommend(
        Recommendation(mixture, "top", {"objective": 1.0}, {"objective": 0.1}, None, ("t0",), "mfbo"), [contender]
    )


def changed(**fields):
    return replace(HEADER, **fields)


def domains(**fingerprints):
    return tuple(Domain(name, 1000, 10, 4000, fingerprint) for name, fingerprint in fingerprints.items())


def state(study):
    return (
        study.headers,
        study.trials,
        study.observations,
        study.batches,
        study.stopped,
        study.recommendation,
        study.contenders,
    )


# --- the fold -----------------------------------------------------------------


def test_a_study_read_again_is_the_study_that_was_written(tmp_path):
    study = a_study(tmp_path)
    study.stop("the budget is spent")
    recommend(study)
    assert state(Study(tmp_path)) == state(study)


def test_a_header_survives_json_without_loss():
    assert Header.from_json(json.loads(json.dumps(HEADER.to_json()))) == HEADER


def test_the_ledger_is_append_only(tmp_path):
    a_study(tmp_path)
    before = (tmp_path / "study.jsonl").read_bytes()
    Study(tmp_path).stop("enough")
    assert (tmp_path / "study.jsonl").read_bytes().startswith(before)


def test_beginning_again_with_the_same_header_writes_nothing(tmp_path):
    a_study(tmp_path)
    before = (tmp_path / "study.jsonl").read_bytes()
    Study(tmp_path).begin(HEADER)
    assert (tmp_path / "study.jsonl").read_bytes() == before


def test_the_life_cycle_follows_the_events(tmp_path):
    study = a_study(tmp_path)
    study.set_status(["t2"], Status.FAILED, "worker lost")
    assert [(t.id, t.status, t.note) for t in study.trials] == [
        ("t0", Status.DONE, ""), ("t1", Status.DONE, ""), ("t2", Status.FAILED, "worker lost"),
    ]  # fmt: skip


def test_an_abandoned_trial_keeps_the_rungs_it_reached(tmp_path):
    study = a_study(tmp_path)
    study.finish(TrialResult("t2", Status.ABANDONED, done("t2", 9.0, ("low",)).observations, "diverged"))
    assert study.trial("t2").note == "diverged"
    assert [o.fidelity for o in study.history().observations if o.trial == "t2"] == ["low"]


def test_the_same_result_twice_is_recorded_once(tmp_path):
    study = a_study(tmp_path)
    before = (tmp_path / "study.jsonl").read_bytes()
    study.finish(done("t0", 99.0))
    assert (tmp_path / "study.jsonl").read_bytes() == before
    assert study.observations[1].losses["x"] == 2.0


def test_best_is_the_lowest_search_run_at_the_target(tmp_path):
    study = a_study(tmp_path)
    study.propose([a_trial("expert", (1.0, 0.0), role=Role.EXPERT), a_trial("cheap", (0.3, 0.7), "low")])
    study.finish(done("expert", 0.1))
    study.finish(done("cheap", 0.2, ("low",)))
    assert study.best() == (study.trial("t1"), 1.5)


def test_nothing_measured_has_no_best_and_an_empty_table(tmp_path):
    study = Study(tmp_path)
    study.begin(HEADER)
    assert study.best() is None
    assert study.to_frame().empty


def test_a_directory_without_a_ledger_says_how_to_start(tmp_path):
    with pytest.raises(StudyError, match=r"holds no study yet; start it with: mixopt run"):
        _ = Study(tmp_path).header


def test_an_unknown_trial_is_named(tmp_path):
    with pytest.raises(StudyError, match="unknown trial 't9'"):
        a_study(tmp_path).trial("t9")


def test_history_is_in_the_order_of_the_ledger_whatever_finished_first(tmp_path):
    study = Study(tmp_path)
    study.begin(HEADER)
    study.propose([a_trial("t0"), a_trial("t1")])
    study.finish(done("t1", fidelities=("top", "low")))
    study.finish(done("t0"))
    keys = [(o.trial, o.fidelity) for o in study.history().observations]
    assert keys == [("t0", "low"), ("t0", "top"), ("t1", "low"), ("t1", "top")]


def test_the_table_has_one_row_per_run_and_rung(tmp_path):
    frame = a_study(tmp_path).to_frame()
    wanted = [
        "run",
        "seed",
        "parent",
        "role",
        "fidelity",
        "params",
        "tokens",
        "cost",
        "weight/a",
        "weight/b",
        "loss/x",
        "loss/y",
        "objective",
    ]
    assert frame.columns.tolist() == wanted
    assert frame["run"].tolist() == ["t0@low", "t0@top", "t1@low", "t1@top"]
    assert frame["run"].is_unique
    assert frame.loc[0, ["params", "tokens", "cost"]].tolist() == [10, 100, HEADER.ladder["low"].cost]
    assert frame[["weight/a", "weight/b"]].sum(axis=1).tolist() == [1.0] * 4
    assert frame["objective"].tolist() == [2.5, 2.0, 2.0, 1.5]


def test_the_table_survives_a_csv_file(tmp_path):
    frame = a_study(tmp_path).to_frame()
    frame.to_csv(tmp_path / "runs.csv", index=False)
    read = pd.read_csv(tmp_path / "runs.csv")
    assert read["loss/x"].tolist() == frame["loss/x"].tolist()


# --- damage -------------------------------------------------------------------


def ledger_lines(folder):
    return (folder / "study.jsonl").read_bytes().splitlines(keepends=True)


def write_ledger(folder, lines):
    (folder / "study.jsonl").write_bytes(b"".join(lines))


def test_a_torn_last_line_is_dropped_and_the_next_append_is_clean(tmp_path):
    study = a_study(tmp_path)
    lines = ledger_lines(tmp_path)
    write_ledger(tmp_path, [*lines[:-1], lines[-1][:40]])
    recovered = Study(tmp_path)
    assert recovered.trial("t1").status is Status.RUNNING
    recovered.finish(done("t1", 1.5))
    assert state(Study(tmp_path)) == state(study)


def test_a_batch_is_whole_or_not_there(tmp_path):
    a_study(tmp_path)
    lines = ledger_lines(tmp_path)
    write_ledger(tmp_path, [lines[0], lines[1][:-1]])
    assert Study(tmp_path).trials == ()


def test_a_damaged_line_in_the_middle_is_named(tmp_path):
    a_study(tmp_path)
    lines = ledger_lines(tmp_path)
    write_ledger(tmp_path, [lines[0], lines[1].replace(b"0.9", b"0.8"), *lines[2:]])
    with pytest.raises(StudyError, match=r"study\.jsonl, line 2: the checksum does not match; restore a backup"):
        Study(tmp_path)


def test_a_damaged_last_line_that_was_confirmed_is_no_torn_line(tmp_path):
    a_study(tmp_path)
    lines = ledger_lines(tmp_path)
    write_ledger(tmp_path, [*lines[:-1], lines[-1].replace(b"1.5", b"1.6")])
    with pytest.raises(StudyError, match=f"line {len(lines)}"):
        Study(tmp_path)


NO_EVENTS = {
    "empty list": b"[]\n",
    "list": b"[1, 2]\n",
    "empty object": b"{}\n",
    "number": b"7\n",
    "not a number": b'{"type": "stop", "reason": NaN, "crc": ""}\n',
    "half a character": b'{"type": "stop", "reason": "\\ud800", "crc": ""}\n',
    "no text": b"\xff\n",
}


@pytest.mark.parametrize("line", NO_EVENTS.values(), ids=NO_EVENTS)
def test_a_line_that_is_no_event_is_a_damaged_line(tmp_path, line):
    a_study(tmp_path)
    lines = ledger_lines(tmp_path)
    write_ledger(tmp_path, [lines[0], line, *lines[1:]])
    with pytest.raises(StudyError, match="line 2"):
        Study(tmp_path)


def test_an_empty_line_between_events_does_not_cost_the_last_one(tmp_path):
    before = state(a_study(tmp_path))
    lines = ledger_lines(tmp_path)
    write_ledger(tmp_path, [lines[0], b"\n", *lines[1:]])
    study = Study(tmp_path)
    assert state(study) == before
    study.stop("enough")
    assert state(Study(tmp_path)) == state(study)


def test_an_event_of_a_newer_version_says_so(tmp_path):
    study = a_study(tmp_path)
    with pytest.raises(StudyError, match=r"unknown event 'merge'.*upgrade"):
        study._append({"type": "merge"})


def refused_writes(study):
    """Calls that cannot be recorded."""
    return {
        "a known id": lambda: study.propose([a_trial("t3"), a_trial("t0")]),
        "one id twice": lambda: study.propose([a_trial("t3"), a_trial("t3")]),
        "an unknown trial": lambda: study.set_status(["t9"], Status.RUNNING),
    }


@pytest.mark.parametrize("what", ["a known id", "one id twice", "an unknown trial"])
def test_a_refused_event_leaves_no_trace(tmp_path, what):
    study = a_study(tmp_path)
    before = state(study)
    with pytest.raises(StudyError):
        refused_writes(study)[what]()
    assert state(Study(tmp_path)) == before


FULL_DISK = """
import resource, sys
from pathlib import Path
from mixopt.study import Study
room = int(sys.argv[2])
study = Study(Path(sys.argv[1]))
size = study.files.ledger.stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + room, resource.RLIM_INFINITY))
try:
    study.stop("x" * 200)
except Exception as error:
    print(type(error).__name__)
"""


@pytest.mark.parametrize("room", [0, 10, 150, 290])
def test_an_event_that_the_disk_refuses_leaves_no_trace(tmp_path, room):
    # A limit on the file's size stands for a disk that has room for a part of the line.
    before = state(a_study(tmp_path))
    content = (tmp_path / "study.jsonl").read_bytes()
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path), str(room)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert (tmp_path / "study.jsonl").read_bytes() == content
    assert state(Study(tmp_path)) == before


# --- changes ------------------------------------------------------------------


def test_changed_data_are_listed_and_refused(tmp_path):
    a_study(tmp_path)
    new = changed(
        domains=(*domains(a="other"), Domain("c", 5, 1, 9, "text-c")),
        eval_sets=(EvalSet("x", 120, 400, fingerprint="new-x"),),
        tokenizer="t1",
    )
    before = (tmp_path / "study.jsonl").read_bytes()
    with pytest.raises(StudyChangedError) as caught:
        Study(tmp_path).begin(new)
    wanted = [
        "domain b was removed",
        "domain c is new",
        "domain a changed (1,000 -> 1,000 tokens)",
        "evaluation set y was removed",
    ]
    wanted += ["evaluation set x changed (100 -> 120 tokens)", "the tokenizer changed", "--accept-changes"]
    assert [text for text in wanted if text not in str(caught.value)] == []
    assert (tmp_path / "study.jsonl").read_bytes() == before


def test_a_changed_rung_is_listed(tmp_path):
    a_study(tmp_path)
    ladder = Ladder.from_flops([("low", "m", 10, 200, 2.0), ("top", "m", 10, 1000, 10.0)], 0.1)
    with pytest.raises(StudyChangedError, match="rung low changed"):
        Study(tmp_path).begin(changed(ladder=ladder))


@pytest.mark.parametrize(
    "fields",
    [
        {"budget": 9.0},
        {"objective": {"expression": "max(loss/*)", "unit": "nats_per_token"}},
        {"experts_fidelity": "low"},
    ],
)
def test_budget_objective_and_experts_may_change_at_any_time(tmp_path, fields):
    a_study(tmp_path)
    study = Study(tmp_path)
    study.begin(changed(**fields))
    assert len(study.history().trials) == 3
    assert study.header == changed(**fields)


def test_trials_on_changed_text_leave_the_history(tmp_path):
    study = a_study(tmp_path)
    study.begin(changed(domains=domains(a="other", b="text-b")), accept_changes=True)
    assert [trial.id for trial in study.history().trials] == ["t1"]
    assert [o.trial for o in study.history().observations] == ["t1", "t1"]
    assert len(study.trials) == 3


def test_restored_text_brings_its_trials_back(tmp_path):
    study = a_study(tmp_path)
    before = study.history()
    study.begin(changed(domains=domains(a="other", b="text-b")), accept_changes=True)
    study.begin(HEADER, accept_changes=True)
    assert study.history() == before


def test_a_new_domain_has_weight_zero_in_old_mixtures(tmp_path):
    study = a_study(tmp_path)
    study.begin(changed(domains=(Domain("c", 10, 1, 40, "text-c"), *HEADER.domains)), accept_changes=True)
    assert study.history().trials[0].mixture.as_dict() == {"c": 0.0, "a": 0.5, "b": 0.5}
    assert study.to_frame()["weight/c"].tolist() == [0.0] * 4


def test_a_removed_domain_takes_only_the_trials_that_used_it(tmp_path):
    study = a_study(tmp_path)
    study.begin(changed(domains=HEADER.domains[1:]), accept_changes=True)
    assert [t.mixture.as_dict() for t in study.history().trials] == [{"b": 1.0}]


def test_reordered_domains_reorder_the_weights(tmp_path):
    study = a_study(tmp_path)
    study.begin(changed(domains=HEADER.domains[::-1]))
    assert [t.mixture.weights.tolist() for t in study.history().trials] == [[0.5, 0.5], [1.0, 0.0], [0.1, 0.9]]


def test_a_changed_evaluation_set_drops_its_column(tmp_path):
    study = a_study(tmp_path)
    study.begin(
        changed(eval_sets=(EvalSet("x", 100, 400, fingerprint="new-x"), HEADER.eval_sets[1])), accept_changes=True
    )
    history = study.history()
    assert {tuple(o.losses) for o in history.observations} == {("y",)}
    assert study.value(history.observations[0]) is None
    assert study.best() is None


def test_losses_on_a_new_evaluation_set_join_the_old_ones(tmp_path):
    study = a_study(tmp_path)
    study.begin(changed(eval_sets=(*HEADER.eval_sets, EvalSet("z", 5, 9, fingerprint="z"))), accept_changes=True)
    study.rescore([Observation("t0", "top", {"z": 4.0})])
    observation = next(o for o in Study(tmp_path).history().observations if o.key == ("t0", "top"))
    assert dict(observation.losses) == {"x": 2.0, "y": 2.0, "z": 4.0}
    assert observation.cost == 0.5


def test_rescoring_does_not_revive_losses_on_changed_text(tmp_path):
    study = a_study(tmp_path)
    new = (EvalSet("x", 100, 400, fingerprint="new-x"), HEADER.eval_sets[1], EvalSet("z", 5, 9, fingerprint="z"))
    study.begin(changed(eval_sets=new), accept_changes=True)
    study.rescore([Observation("t0", "top", {"z": 4.0})])
    observation = next(o for o in study.history().observations if o.key == ("t0", "top"))
    assert set(observation.losses) == {"y", "z"}


def test_another_tokenizer_makes_every_run_stale(tmp_path):
    study = a_study(tmp_path)
    study.begin(changed(tokenizer="t1"), accept_changes=True)
    assert study.history().trials == ()


def test_observations_at_a_changed_rung_leave_the_history(tmp_path):
    study = a_study(tmp_path)
    ladder = Ladder.from_flops([("low", "m", 10, 200, 2.0), ("top", "m", 10, 1000, 10.0)], 0.1)
    study.begin(changed(ladder=ladder), accept_changes=True)
    # Runs to the unchanged top rung stay, but they passed the old `low`, at 100 tokens.
    assert [o.key for o in study.history().observations] == [("t0", "top"), ("t1", "top")]


def test_a_removed_rung_takes_its_observations_along(tmp_path):
    study = a_study(tmp_path)
    study.begin(changed(ladder=Ladder.from_flops([("top", "m", 10, 1000, 10.0)], 0.1)), accept_changes=True)
    assert {o.fidelity for o in study.history().observations} == {"top"}


def test_a_new_header_withdraws_the_recommendation_and_opens_the_search(tmp_path):
    study = a_study(tmp_path)
    study.stop("the budget is spent")
    recommend(study)
    study.begin(changed(budget=8.0))
    assert (study.recommendation, study.stopped) == (None, None)


def test_a_further_search_batch_opens_the_search_again(tmp_path):
    study = a_study(tmp_path)
    study.stop("the budget is spent")
    study.propose([a_trial("check", role=Role.VALIDATION)])
    assert study.stopped == "the budget is spent"
    study.propose([a_trial("t3")])
    assert study.stopped is None
