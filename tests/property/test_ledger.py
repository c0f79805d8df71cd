"""Whatever happened to the end of a ledger, what was confirmed is read and the study goes on."""

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixopt import Domain, EvalSet, Ladder, Mixture, Observation, Role, Status, StudyError, Trial
from mixopt.protocols import TrialResult
from mixopt.study import Header, Study

DOMAINS = (Domain("web", 1000, 10, 4000, "w"), Domain("code", 3000, 30, 9000, "c"))
LADDER = Ladder.from_flops([("low", "m", 10, 100, 1.0), ("top", "m", 10, 1000, 10.0)], 0.1)
HEADER = Header(
    "s", 0, DOMAINS, (EvalSet("x", 9, 9),), LADDER, "t", {"expression": "loss/x", "unit": "nats_per_token"}, 2.0, "top"
)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@st.composite
def steps(draw):
    """A possible life of a study, as functions on it."""
    actions, num = [lambda study: study.begin(HEADER)], draw(st.integers(1, 4))
    for i in range(num):
        share, reason, value, note = draw(st.floats(0, 1)), draw(TEXTS), draw(NUMBERS), draw(TEXTS)
        mixture = Mixture.normalized(("web", "code"), [share, 1 - share])
        trial = Trial(f"t{i}", Role.SEARCH, mixture, "top", draw(st.integers(0, 2**63 - 1)), "test", reason, value)
        result = TrialResult(trial.id, Status.DONE, (Observation(trial.id, "top", {"x": draw(NUMBERS)}),), draw(TEXTS))
        actions.append(lambda study, trial=trial: study.propose([trial]))
        actions.append(lambda study, trial=trial, note=note: study.set_status([trial.id], Status.FAILED, note))
        if draw(st.booleans()):
            actions.append(lambda study, result=result: study.finish(result))
    end = draw(TEXTS)
    return [*actions, lambda study: study.stop(end)]


def live(folder, actions):
    study = Study(folder)
    for action in actions:
        action(study)
    return study


def state(study):
    return study.headers, study.trials, study.observations, study.batches, study.stopped


def without_times(content):
    events = [json.loads(line) for line in content.splitlines()]
    return [{key: value for key, value in event.items() if key not in ("time", "crc")} for event in events]


@settings(max_examples=25, deadline=None)
@given(steps())
def test_reading_a_ledger_gives_the_state_of_its_writer(actions):
    with tempfile.TemporaryDirectory() as folder:
        study = live(Path(folder), actions)
        assert state(Study(Path(folder))) == state(study)


@settings(max_examples=8, deadline=None)
@given(steps(), st.data())
def test_a_ledger_torn_anywhere_is_its_longest_whole_prefix(actions, data):
    with tempfile.TemporaryDirectory() as folder:
        ledger = live(Path(folder), actions).files.ledger
        content = ledger.read_bytes()
        cut = data.draw(st.integers(0, len(content)))
        ledger.write_bytes(content[:cut])
        whole = content[:cut].count(b"\n")
        study = Study(Path(folder))
        for action in actions[whole:]:
            action(study)
        assert without_times(ledger.read_bytes()) == without_times(content)


def test_every_byte_position_of_the_last_event_can_be_torn(tmp_path):
    trial = Trial("t0", Role.SEARCH, Mixture(("web", "code"), [0.5, 0.5]), "top", 1, "test", "naïve ☃")
    actions = [lambda s: s.begin(HEADER), lambda s: s.propose([trial]), lambda s: s.stop("größer ☃")]
    ledger = live(tmp_path, actions).files.ledger
    content = ledger.read_bytes()
    start = content.rindex(b"\n", 0, -1) + 1
    for cut in range(start, len(content)):
        ledger.write_bytes(content[:cut])
        study = Study(tmp_path)
        assert (study.stopped, len(study.trials)) == (None, 1)
        study.stop("größer ☃")
        assert without_times(ledger.read_bytes()) == without_times(content)
        assert Study(tmp_path).stopped == "größer ☃"


def test_a_flipped_byte_anywhere_in_the_middle_names_its_line_or_changes_nothing(tmp_path):
    trial = Trial("t0", Role.SEARCH, Mixture(("web", "code"), [0.5, 0.5]), "top", 1, "test", "reason", 1e-06)
    actions = [lambda s: s.begin(HEADER), lambda s: s.propose([trial]), lambda s: s.stop("enough")]
    whole = live(tmp_path, actions)
    content = whole.files.ledger.read_bytes()
    start = content.index(b"\n") + 1
    for at in range(start, content.index(b"\n", start) + 1):
        damaged = bytearray(content)
        damaged[at] ^= 1 << at % 7
        whole.files.ledger.write_bytes(bytes(damaged))
        try:
            read = Study(tmp_path)
        except StudyError as error:
            assert "line 2" in str(error)  # noqa: PT017
        else:
            # A space that became another blank is the same event.
            assert state(read) == state(whole)


@settings(max_examples=25, deadline=None)
@given(st.binary(max_size=60).filter(lambda junk: b"\n" not in junk))
def test_junk_after_the_last_newline_is_dropped(junk):
    with tempfile.TemporaryDirectory() as folder:
        study = live(Path(folder), [lambda s: s.begin(HEADER)])
        with study.files.ledger.open("ab") as file:
            file.write(junk)
        again = Study(Path(folder))
        again.stop("done")
        assert state(Study(Path(folder))) == state(again)


@settings(max_examples=50, deadline=None)
@given(st.binary(min_size=1, max_size=60).filter(lambda junk: junk.strip(b"\n")))
def test_a_whole_line_of_junk_is_an_error_and_nothing_else(junk):
    with tempfile.TemporaryDirectory() as folder:
        study = live(Path(folder), [lambda s: s.begin(HEADER)])
        with study.files.ledger.open("ab") as file:
            file.write(junk + b"\n")
        with pytest.raises(StudyError, match="line"):
            Study(Path(folder))
