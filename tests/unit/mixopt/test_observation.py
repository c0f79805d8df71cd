import json

import pytest

from mixopt import History, Ladder, Mixture, Observation, Role, Status, Trial

LADDER = Ladder.from_flops([("low", "m", 10, 100, 1.0), ("top", "m", 10, 1000, 10.0)], 0.1)


def a_trial(trial_id="t", role=Role.SEARCH, fidelity="top", **fields):
    return Trial(trial_id, role, Mixture(("a", "b"), [0.1, 0.9]), fidelity, 7, "mfbo", **fields)


def test_a_trial_survives_json_without_loss():
    trial = a_trial(reason="why ☃", value=1e-17, parent="p", parent_kind="continued", parent_fidelity="low")
    assert Trial.from_json(json.loads(json.dumps(trial.to_json()))) == trial


def test_an_observation_survives_json_without_loss():
    observation = Observation(
        "t",
        "low",
        {"a": 0.1 + 0.2},
        {"quiz": 0.5},
        {"loss/a": 0.01},
        0.3,
        1e12,
        1.5,
        2.5,
        [[0.5, 0.5]],
        {"a": 0.25},
        3.1,
    )
    assert Observation.from_json(json.loads(json.dumps(observation.to_json()))) == observation


def test_status_and_note_belong_to_events_not_to_the_proposal():
    assert not {"status", "note"} & set(a_trial().with_status(Status.FAILED, "lost").to_json())


def test_only_proposed_and_running_trials_need_work():
    assert [status for status in Status if not status.finished] == [Status.PROPOSED, Status.RUNNING]


def test_a_continuation_is_charged_from_where_its_parent_stopped():
    trial = a_trial(parent="p", parent_kind="continued", parent_fidelity="low")
    assert trial.price(LADDER) == pytest.approx(1 - LADDER["low"].cost + 0.1)


def test_columns_carry_the_names_of_the_runs_table():
    assert Observation("t", "low", {"a": 1.0}, {"quiz": 0.5}).columns() == {"loss/a": 1.0, "score/quiz": 0.5}


def test_pending_and_failed_trials_are_spent_too():
    trials = tuple(a_trial(str(status)).with_status(status) for status in Status)
    history = History(trials)
    assert history.spent(LADDER) == pytest.approx(len(Status))
    assert [trial.status for trial in history.pending] == [Status.PROPOSED, Status.RUNNING]


def test_a_role_keeps_its_own_observations():
    history = History(
        (a_trial("s"), a_trial("e", Role.EXPERT)),
        (Observation("s", "top", {"a": 1.0}), Observation("e", "top", {"a": 2.0})),
    )
    assert [o.trial for o in history.of(Role.EXPERT).observations] == ["e"]
    assert history.trial("e").role is Role.EXPERT


def test_summary_of_loads_names_the_worst_layer_and_the_dead():
    observation = Observation("t", "low", {}, router_loads=[[0.25] * 4, [0.5, 0.5, 0.0, 0.0]], active_experts=1.5)
    assert observation.load_summary() == {"max_load": 2.0, "dead": 0.25, "active": 1.5}
    assert Observation("t", "low", {}).load_summary() == {}


def test_observations_written_before_experts_were_counted_can_be_read():
    data = Observation("t", "low", {"a": 1.0}).to_json()
    del data["active_experts"]
    assert Observation.from_json(data).active_experts is None
