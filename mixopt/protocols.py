"""The seams of the house: what is passed in, and what it must do.

Optimizer   history -> proposals, predictions, a recommendation (keeps nothing)
Predictor   mixtures -> losses and scores without training (the MDE and its relatives)
Evaluator   a stack of trials -> their results, inside a worker
Executor    where evaluators run: this process, or Ray
Tracker     shows the ledger elsewhere; nothing reads from it
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from .mixture import Array, Mixture
from .observation import History, Observation, Status, Trial
from .proposal import Prediction, Proposal, Recommendation

if TYPE_CHECKING:
    from .study import Study


class Predictor(Protocol):
    """Predicts columns of the runs table for mixtures, without training them."""

    @property
    def domains(self) -> tuple[str, ...]:
        """K domains, in the order of the weights."""

    @property
    def columns(self) -> tuple[str, ...]:
        """J columns, `loss/<name>` in nats per token or `score/<name>`."""

    def predict(self, weights: Array) -> Array:
        """Return (M, J) values of the columns for (M, K) mixture weights."""

    def gradient(self, weights: Array) -> Array:
        """Return (M, J, K) derivatives of `predict` with respect to the weights."""

    def num_tokens(self, column: str) -> int:
        """Return how many tokens a column is a mean over; its errors grow as they get fewer."""


class Optimizer(Protocol):
    """Decides what to train next; a pure function of the history and its settings."""

    @property
    def name(self) -> str:
        """Short name, written into `proposed_by`."""

    def propose(self, history: History, num: int, *, budget: float) -> Sequence[Proposal]:
        """Return up to `num` proposals whose charges sum to at most `budget` top-rung runs.

        Same history, same proposals. An empty answer ends the search: nothing is
        affordable, or no proposal is worth its price.
        """

    def recommend(self, history: History) -> Recommendation:
        """Return the mixture to use, given all that is known."""

    def predict(self, history: History, mixtures: Sequence[Mixture], *, fidelity: str) -> Prediction:
        """Return predicted losses and objective, with standard deviations, at a rung."""


@dataclass(frozen=True)
class TrialResult:
    """What an evaluator says of one trial of a stack.

    Attributes:
        trial: Id of the trial.
        status: DONE, or ABANDONED when it diverged.
        observations: One per rung passed; those before a divergence are kept.
        note: Reason in words when abandoned.
    """

    trial: str
    status: Status
    observations: tuple[Observation, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Job:
    """One unit of work: a stack of trials of one shape, trained as one program.

    Attributes:
        fingerprint: Content hash of all that determines the result.
        trials: The stack, in a fixed order.
        kind: `train`, or `score` for scoring a finished expert on new evaluation sets.
    """

    fingerprint: str
    trials: tuple[Trial, ...]
    kind: str = "train"


class Evaluator(Protocol):
    """Turns jobs into results; plain data, so that it can be sent to a worker."""

    def fingerprint(self, trials: Sequence[Trial], kind: str) -> str:
        """Return the content hash of a job: data, model, mixtures, seeds, lengths."""

    def evaluate(self, job: Job, directory: Path) -> Sequence[TrialResult]:
        """Do the job; `directory` is the run directory for checkpoints and curves."""


@dataclass(frozen=True)
class JobReport:
    """How a job ended.

    Attributes:
        job: The job.
        results: Results when it finished, else None.
        error: Reason in words when it did not.
        retryable: Whether trying again can help (worker lost, out of memory).
    """

    job: Job
    results: tuple[TrialResult, ...] | None
    error: str = ""
    retryable: bool = False


class Executor(Protocol):
    """Runs jobs somewhere, several at a time."""

    @property
    def slots(self) -> int:
        """How many jobs run at the same time."""

    def submit(self, job: Job) -> None:
        """Queue a job."""

    def collect(self, timeout: float) -> Sequence[JobReport]:
        """Return reports of jobs that ended, waiting at most `timeout` seconds for the first."""

    def interrupt(self) -> None:
        """Ask all work to save its state and stop; `collect` still reports how it ended."""

    def shutdown(self) -> None:
        """Stop all work and release the workers."""


class Tracker(Protocol):
    """Projects a study to a dashboard."""

    def project(self, study: Study) -> None:
        """Bring the projection up to date with the ledger; doing it twice changes nothing."""

    def finish(self, study: Study, artifacts: Sequence[Path], *, failed: bool = False) -> None:
        """Attach artifacts to the study's own run and end it."""


class Watch(Protocol):
    """Receives progress; the CLI passes one that draws."""

    def phase(self, name: str, detail: str = "") -> None:
        """A phase of the service begins."""

    def update(self, study: Study, running: Sequence[Job]) -> None:
        """Called about twice a second and after every change of the ledger."""


class NullWatch:
    """A watch that shows nothing."""

    def phase(self, name: str, detail: str = "") -> None:
        """Ignore the phase."""

    def update(self, study: Study, running: Sequence[Job]) -> None:
        """Ignore the update."""
