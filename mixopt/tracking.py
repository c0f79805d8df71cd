"""Tracking: a study's ledger shown as MLflow runs. The only door to MLflow.

The projection is a function of the ledger: one run per study, one child run per
trial. Runs are found again by their tags and metrics carry times that follow from
the run and the ledger, so projecting twice, from another process or after a crash,
adds only what is missing. Nothing ever reads from it; `mixopt sync` rebuilds it.

    study run   params of the header, best objective and spending, the mixture
    trial runs  curve, losses per rung, cost, router loads; kind, status, reason as tags
"""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
import re
import socket
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from . import projection
from .errors import ConfigError, ResourceError
from .identity import fingerprint
from .observation import Observation, Status, Trial
from .storage import explained_errors

if TYPE_CHECKING:
    from .study import Study

logger = logging.getLogger(__name__)

_RUN_STATUS = {
    Status.PROPOSED: "SCHEDULED",
    Status.RUNNING: "RUNNING",
    Status.DONE: "FINISHED",
    Status.FAILED: "FAILED",
    Status.ABANDONED: "KILLED",
}
_DATABASES = ("postgresql", "mysql", "mssql")
_ENDED = ("FINISHED", "FAILED", "KILLED")
_STUDY = ""  # key of the study's own run beside those of the trials
_CONNECT_SECONDS, _REQUEST_SECONDS = 3, 12
_REMEDY = "start the server, change run.tracking_uri or --tracking-uri, or use the default SQLite store"


class NullTracker:
    """A tracker that shows nothing."""

    def project(self, study: Study) -> None:
        """Ignore the study."""

    def finish(self, study: Study, artifacts: Sequence[Path], *, failed: bool = False) -> None:
        """Ignore the end of the study."""


def default_uri(run_directory: Path) -> str:
    """Return the SQLite store that all studies beside `run_directory` share."""
    return f"sqlite:///{Path(run_directory).absolute().parent / 'mlflow.db'}"


@dataclass
class _Run:
    """What is known of one MLflow run, so that an unchanged trial costs no request."""

    id: str
    start: int
    status: str
    params: set[str]
    synced: str = ""
    is_new: bool = False


class MlflowTracker:
    """Projects studies to an MLflow server or database.

    A server that dies during a study costs a warning and the projection from there
    on, never the study. The driver is the only writer.

    Args:
        uri: `http(s)://...`, `sqlite:///...` or another database MLflow knows.
        experiment: Name of the MLflow experiment; the study's name if None.
        artifact_root: Where a new experiment in a database keeps its artifacts;
            `mlartifacts` beside the run directory if None. A server decides itself.

    Raises:
        ConfigError: If the URI is of an unknown kind.
        ResourceError: If the store cannot be reached or written.
    """

    def __init__(self, uri: str, *, experiment: str | None = None, artifact_root: Path | None = None) -> None:
        self.uri = uri
        self.active = True
        self._experiment = experiment
        self._artifact_root = artifact_root
        self._directory: str | None = None
        self._experiment_id = ""
        self._runs: dict[str, _Run] = {}
        self._sent: set[Any] = set()
        self._client = self._connect()

    def project(self, study: Study) -> None:
        """Bring the projection up to date with the ledger; doing it twice changes nothing."""
        self._attempt(lambda: self._project(study))

    def finish(self, study: Study, artifacts: Sequence[Path], *, failed: bool = False) -> None:
        """Attach artifacts to the study's own run and end every run nobody works on."""
        self._attempt(lambda: self._finish(study, artifacts, "FAILED" if failed else "FINISHED"))

    def dashboard_link(self, study: Study) -> str:
        """Return the place of the study's runs in MLflow's UI, with the columns that matter.

        The columns are kept as one of MLflow's shared views, a tag of the experiment.
        """
        with _opening(self.uri):
            self._find(study)
            name = fingerprint(list(study.header.domain_names))
            view = json.dumps(projection.dashboard_view(study))
            self._client.set_experiment_tag(self._experiment_id, f"mlflow.sharedViewState.mixopt-{name}", view)
            # MLflow opens on its pages for agents and prompts unless told otherwise.
            shown = f"workflowType=machine_learning&viewStateShareKey=mixopt-{name}"
            return f"#/experiments/{self._experiment_id}/runs?{shown}"

    # --- the connection ------------------------------------------------------

    def _connect(self) -> Any:
        """Return a client that has answered one request, within 15 seconds for a server."""
        with _opening(self.uri):
            # Read by MLflow at import. A request MLflow repeats could create a run twice; `_attempt` repeats safely.
            for name, value in {
                "MLFLOW_DISABLE_TELEMETRY": "true",
                "DO_NOT_TRACK": "true",
                "MLFLOW_HTTP_REQUEST_TIMEOUT": str(_REQUEST_SECONDS),
                "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
                # It would print links to stdout, with the user and password of the URI.
                "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
            }.items():
                os.environ.setdefault(name, value)
            import mlflow
            import sqlalchemy.exc

            for name in ("mlflow", "alembic"):
                logging.getLogger(name).setLevel(logging.WARNING)
            # Requests' own errors are OSErrors.
            self._errors = (mlflow.MlflowException, sqlalchemy.exc.SQLAlchemyError, OSError)
            try:
                client = mlflow.MlflowClient(tracking_uri=self.uri)
                client.search_experiments(max_results=1)
            except (*self._errors, ImportError) as error:
                message = f"no MLflow store answers at {shown_uri(self.uri)} ({_first_line(error)}); {_REMEDY}"
                raise ResourceError(message) from error
        return client

    def _attempt(self, work: Callable[[], None]) -> None:
        """Do the work, once more from a fresh look at the store, or stop tracking with one warning."""
        for is_last in (False, True):
            if not self.active:
                return
            try:
                work()
                return
            except self._errors as error:
                self._directory = None
                self.active = not is_last
                if is_last:
                    reason = _first_line(error)
                    logger.warning(
                        "tracking stopped uri=%s error=%s; run `mixopt sync STUDY` later", shown_uri(self.uri), reason
                    )

    # --- finding and making runs ---------------------------------------------

    def _find(self, study: Study) -> None:
        """Look up the experiment and the runs this study already has there."""
        directory = str(study.files.path.absolute())
        self._experiment_id = self._experiment_for(study)
        self._runs, self._sent = {}, set()
        quote = '"' if "'" in directory else "'"
        query, token = f"tags.`mixopt.run_dir` = {quote}{directory}{quote}", None
        while True:
            page = self._client.search_runs(
                [self._experiment_id], query, order_by=["attributes.start_time DESC"], page_token=token
            )
            for run in page:
                # Should two exist, the older one wins: it comes last.
                tags = run.data.tags
                self._runs[tags.get("mixopt.trial", _STUDY)] = _Run(
                    run.info.run_id,
                    run.info.start_time,
                    run.info.status,
                    set(run.data.params),
                    tags.get("mixopt.synced", ""),
                )
            token = page.token
            if not token:
                break
        self._directory = directory

    def _experiment_for(self, study: Study) -> str:
        name = self._experiment or study.header.name
        found = self._client.get_experiment_by_name(name)
        if found is None:
            root = self._artifact_root or study.files.path.absolute().parent / "mlartifacts"
            location = None if self.uri.startswith("http") else (root.absolute() / name).as_uri()
            return str(self._client.create_experiment(name, artifact_location=location))
        if found.lifecycle_stage == "deleted":
            logger.warning("experiment restored name=%s; it was deleted in MLflow", name)
            self._client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    def _ensure(self, key: str, name: str, tags: Mapping[str, str]) -> _Run:
        if key not in self._runs:
            run = self._client.create_run(self._experiment_id, tags=dict(tags), run_name=name)
            self._runs[key] = _Run(run.info.run_id, run.info.start_time, run.info.status, set(), is_new=True)
        return self._runs[key]

    # --- writing -------------------------------------------------------------

    def _project(self, study: Study) -> None:
        if self._directory != str(study.files.path.absolute()):
            self._find(study)
        parent = self._ensure(_STUDY, study.header.name, {"mixopt.kind": "study", **projection.shared_tags(study)})
        results: dict[str, list[Observation]] = {trial.id: [] for trial in study.trials}
        for observation in study.observations:
            results[observation.trial].append(observation)
        objectives = {o.key: study.value(o) for o in study.history().observations}
        for trial in study.trials:
            # Losses, not observations: a new evaluation set adds losses to old ones.
            num_losses = sum(len(observation.losses) for observation in results[trial.id])
            state = f"{trial.status}:{num_losses}:{len(study.headers)}"
            if trial.id not in self._runs or self._runs[trial.id].synced != state:
                self._project_trial(study, trial, results[trial.id], objectives=objectives, parent=parent.id)
                self._mark(trial, state)
        if parent.status in _ENDED and not all(trial.status.finished for trial in study.trials):
            self._set_status(parent, "RUNNING")
        tags = projection.study_tags(study)
        self._write(
            study, parent, projection.study_points(study, objectives), params=projection.study_params(study), tags=tags
        )

    def _project_trial(
        self,
        study: Study,
        trial: Trial,
        observations: Sequence[Observation],
        *,
        objectives: Mapping[tuple[str, str], float | None],
        parent: str,
    ) -> None:
        tags = {"mlflow.parentRunId": parent, **projection.trial_tags(trial), **projection.shared_tags(study)}
        run = self._ensure(trial.id, projection.run_name(study, trial), tags)
        points = projection.trial_points(study, observations, objectives)
        if trial.status.finished:
            points += projection.curve(study.files.trial(trial.id) / "curve.jsonl")
        changing = {"mixopt.status": str(trial.status), "mixopt.note": trial.note[: projection.LONGEST_TAG]}
        self._write(study, run, points, params=projection.trial_params(study, trial), tags=changing)
        # A run written after the fact lasts as long as its share of the stack did, not as long as the writing.
        seconds = sum(observation.wall_seconds for observation in observations)
        end = run.start + int(1000 * seconds) if run.is_new and trial.status.finished else None
        self._set_status(run, _RUN_STATUS[trial.status], end_time=end)
        run.is_new = False

    def _mark(self, trial: Trial, state: str) -> None:
        """Note that a run is complete up to `state`; always the last write to it."""
        self._client.set_tag(self._runs[trial.id].id, "mixopt.synced", state)
        self._runs[trial.id].synced = state

    def _write(
        self,
        study: Study,
        run: _Run,
        points: Sequence[projection.Point],
        *,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
    ) -> None:
        """Send what is new in one request; a param keeps its first value, as MLflow insists."""
        from mlflow.entities import Metric, Param, RunTag

        # Equal for equal ledgers, so the store drops repetitions; a new header's values are the newer ones.
        time = run.start + len(study.headers)
        metrics = [p for p in points if math.isfinite(p[1]) and (run.id, time, *p) not in self._sent]
        labels = [(k, v) for k, v in tags.items() if v and (run.id, k, v) not in self._sent]
        settings = {k: v for k, v in params.items() if k not in run.params}
        if not (metrics or labels or settings):
            return
        self._client.log_batch(
            run.id,
            [Metric(key, value, time, step) for key, value, step in metrics],
            [Param(key, str(value)) for key, value in settings.items()],
            [RunTag(key, value) for key, value in labels],
        )
        run.params.update(settings)
        self._sent.update((run.id, time, *point) for point in metrics)
        self._sent.update((run.id, *label) for label in labels)

    def _set_status(self, run: _Run, status: str, *, end_time: int | None = None) -> None:
        if run.status == status:
            return
        if status in _ENDED:
            self._client.set_terminated(run.id, status, end_time)
        else:
            self._client.update_run(run.id, status=status)
        run.status = status

    def _finish(self, study: Study, artifacts: Sequence[Path], status: str) -> None:
        self._project(study)
        for path in artifacts:
            if path.exists():
                self._client.log_artifact(self._runs[_STUDY].id, str(path))
            else:
                logger.warning("artifact missing path=%s; it is left out of MLflow", path)
        for trial in study.trials:
            if not trial.status.finished:
                self._mark(trial, "interrupted")
                self._set_status(self._runs[trial.id], "KILLED")
        self._set_status(self._runs[_STUDY], status)


# --- opening a store ---------------------------------------------------------


@contextmanager
def _opening(uri: str) -> Iterator[None]:
    """Check in seconds what MLflow would take minutes to refuse; hold a new SQLite file alone."""
    parts = urlsplit(uri)
    kind = parts.scheme.partition("+")[0]
    if kind in ("http", "https"):
        _probe(uri, parts.hostname or "", parts.port or (443 if kind == "https" else 80))
        yield
    elif kind == "sqlite":
        with _alone(_sqlite_path(uri)):
            yield
    elif kind in _DATABASES:
        yield
    else:
        raise ConfigError(
            f"run.tracking_uri: expected http(s)://HOST:PORT, sqlite:///PATH or another database MLflow knows "
            f"({', '.join(_DATABASES)}), got {shown_uri(uri)!r}; write for example sqlite:///runs/mlflow.db"
        )


def _probe(uri: str, host: str, port: int) -> None:
    scheme = urlsplit(uri).scheme
    if urllib.request.getproxies().get(scheme) and not urllib.request.proxy_bypass(host):
        return
    try:
        socket.create_connection((host, port), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        message = f"no MLflow server answers at {shown_uri(uri)} ({_first_line(error)}); {_REMEDY}"
        raise ResourceError(message) from error


def _sqlite_path(uri: str) -> Path:
    path = uri.partition("?")[0].partition(":///")[2]
    if not path or path == ":memory:":
        raise ConfigError(
            f"run.tracking_uri: {shown_uri(uri)!r} names no file; write for example sqlite:///runs/mlflow.db"
        )
    return Path(path)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a lock beside a SQLite store while it is opened: two processes that create its tables clash."""
    lock = path.with_name(f"{path.name}.lock")
    try:
        with explained_errors(lock):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.open("ab").close()
            file = lock.open("a")
    except (OSError, ResourceError) as error:
        raise ResourceError(f"cannot write the MLflow store {path} ({_first_line(error)}); {_REMEDY}") from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def shown_uri(text: str) -> str:
    """Return text with the user names, passwords and tokens of URIs in it replaced by `***`."""
    text = re.sub(r"://[^/?#\s]*@", "://***@", text)
    return re.sub(
        r"([?&][^=&\s]*(?:password|passwd|pwd|token|secret)[^=&\s]*=)[^&#\s]*", r"\1***", text, flags=re.IGNORECASE
    )


def without_secrets(uri: str) -> str:
    """Return a URI without what `shown_uri` hides: what may be kept in a file."""
    shown = shown_uri(uri)
    return (
        uri if shown == uri else re.sub(r"(?<=[?&])[^=&]*=\*\*\*&?", "", shown.replace("://***@", "://")).rstrip("?&")
    )


def _first_line(error: BaseException) -> str:
    return shown_uri((str(error).strip().splitlines() or [type(error).__name__])[0][:300])
