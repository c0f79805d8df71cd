"""Random lives of a study: whatever is interrupted and resumed in whatever order, no finished result is lost or changed."""

import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mixopt import Mixture, Observation, Role, Status, Trial
from mixopt.protocols import TrialResult
from mixopt.study import Study

from .test_ledger import HEADER

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)


class StudyMachine(RuleBasedStateMachine):
    """The study, and beside it a plain model of what its ledger has confirmed.

    `synced` are the bytes that are on disk for sure; a power cut may take what came later.
    """

    @initialize()
    def begin(self):
        self.folder = Path(tempfile.mkdtemp())
        self.study = Study(self.folder)
        self.study.begin(HEADER)
        self.states = [({}, {})]  # after each line of the ledger: {trial: status}, {trial: loss}
        self.count = 0

    def _confirm(self, statuses=(), losses=()):
        known, measured = self.states[-1]
        self.states.append(({**known, **dict(statuses)}, {**measured, **dict(losses)}))

    @rule(num=st.integers(1, 3), share=st.floats(0, 1))
    def propose(self, num, share):
        mixture = Mixture.normalized(("web", "code"), [share, 1 - share])
        trials = [Trial(f"t{self.count + i}", Role.SEARCH, mixture, "top", i, "test") for i in range(num)]
        self.count += num
        self.study.propose(trials)
        self._confirm({trial.id: Status.PROPOSED for trial in trials})

    def _open(self):
        return [t.id for t in self.study.trials if t.status not in (Status.DONE, Status.ABANDONED)]

    @precondition(lambda self: self._open())
    @rule(data=st.data(), status=st.sampled_from([Status.RUNNING, Status.FAILED]))
    def start_or_fail(self, data, status):
        trial = data.draw(st.sampled_from(self._open()))
        self.study.set_status([trial], status, "because")
        self._confirm({trial: status})

    @precondition(lambda self: self._open())
    @rule(data=st.data(), loss=NUMBERS, diverged=st.booleans())
    def finish(self, data, loss, diverged):
        trial = data.draw(st.sampled_from(self._open()))
        status = Status.ABANDONED if diverged else Status.DONE
        found = () if diverged else (Observation(trial, "top", {"x": loss}),)
        self.study.finish(TrialResult(trial, status, found))
        self._confirm({trial: status}, {} if diverged else {trial: loss})

    @precondition(lambda self: self.states[-1][1])
    @rule(data=st.data(), loss=NUMBERS)
    def finish_again(self, data, loss):
        """A result that comes twice, even with another number, changes nothing."""
        trial = data.draw(st.sampled_from(sorted(self.states[-1][1])))
        self.study.finish(TrialResult(trial, Status.DONE, (Observation(trial, "top", {"x": loss}),)))

    @rule()
    def resume(self):
        self.study = Study(self.folder)

    @rule(data=st.data(), junk=st.binary(max_size=20).filter(lambda junk: b"\n" not in junk))
    def power_cut(self, data, junk):
        """Cut the last lines anywhere, whole ones too, and leave junk of an unfinished block behind."""
        ledger = self.study.files.ledger
        content = ledger.read_bytes()
        keep = content.rstrip(b"\n").rfind(b"\n") + 1 if len(self.states) > 1 else len(content)
        cut = data.draw(st.integers(keep, len(content)))
        torn = content[:cut]
        # Junk after a whole line that lost its newline would look like a damaged newline; a torn line has none.
        ledger.write_bytes(torn + (junk if torn.endswith(b"\n") else b""))
        del self.states[torn.count(b"\n") :]
        self.study = Study(self.folder)

    @invariant()
    def knows_what_was_confirmed_and_nothing_else(self):
        if not hasattr(self, "study"):
            return
        statuses, losses = self.states[-1]
        assert {t.id: t.status for t in self.study.trials} == statuses
        assert {o.trial: o.losses["x"] for o in self.study.observations} == losses

    @invariant()
    def a_reader_sees_the_same(self):
        if hasattr(self, "study"):
            again = Study(self.folder)
            assert (again.trials, again.observations) == (self.study.trials, self.study.observations)

    def teardown(self):
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)


StudyMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
test_a_study_survives_any_interleaving_of_work_and_crashes = StudyMachine.TestCase
