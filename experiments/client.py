"""A client of `mixopt serve`, with nothing but the standard library.

    client = Client("http://127.0.0.1:8765", token="...")
    for run in client.suggest(4):
        client.tell(run["run"], losses=train(run["weights"], run["fidelity"]))

Every call is safe to repeat, so one that gets no answer is repeated some times before
it fails. Answers are plain data, as the service's OpenAPI document describes them.
"""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from mixopt.errors import ConfigError, ConflictError, ResourceError


class Client:
    """Asks and tells a study on another machine.

    Args:
        url: Where `mixopt serve` listens.
        token: Its token, or None where it needs none.
        attempts: How often a call without an answer is made, with pauses of 1, 2, 4, ... seconds.
        timeout_seconds: How long to wait for one answer; a suggestion takes seconds.

    Raises:
        ConfigError: If the service refuses a call: a ConflictError if it contradicts what the study knows.
        ResourceError: If the service does not answer.
    """

    def __init__(self, url: str, token: str | None = None, *, attempts: int = 4, timeout_seconds: float = 300) -> None:
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"url: expected http://HOST:PORT or https://..., got {url!r}; correct it")
        self._url = url.rstrip("/")
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
        self._attempts, self._timeout = attempts, timeout_seconds

    def suggest(self, num: int | None = None, *, request: str | None = None) -> list[dict[str, Any]]:
        """Return runs to train: run, fidelity, weights, cost, reason; a key of one's own survives a restart."""
        body = {"num": num, "request": request or uuid.uuid4().hex}
        return list(self._call("/suggest", body)["suggestions"])

    def tell(
        self, run: str, losses: Mapping[str, float] | None = None, scores: Mapping[str, float] | None = None
    ) -> dict[str, Any]:
        """Tell what a suggested run showed."""
        return self.tell_runs([{"run": run, "losses": dict(losses or {}), "scores": dict(scores or {})}])

    def fail(self, run: str) -> dict[str, Any]:
        """Tell that a suggested run failed."""
        return self.tell_runs([{"run": run, "failed": True}])

    def tell_runs(self, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Tell what runs showed, suggested ones or one's own: all of them or, on an error, none."""
        return self._call("/tell", {"runs": [dict(run) for run in runs]})

    def predict(self, mixtures: Sequence[Mapping[str, float]], *, fidelity: str | None = None) -> list[dict[str, Any]]:
        """Predict mixtures: mean and std of each column and of the objective."""
        body = {"mixtures": [dict(mixture) for mixture in mixtures], "fidelity": fidelity}
        return list(self._call("/predict", body)["predictions"])

    def status(self) -> dict[str, Any]:
        """Return where the study stands."""
        return self._call("/status")

    def runs(self, state: str | None = None) -> list[dict[str, Any]]:
        """Return the runs of the study, all or those that are pending, done or failed."""
        return list(self._call(f"/runs?state={state}" if state else "/runs")["runs"])

    def recommendation(self) -> dict[str, Any]:
        """Return the mixture to use, with what is predicted for it."""
        return self._call("/recommendation")

    def _call(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body, allow_nan=False).encode()
        request = urllib.request.Request(self._url + path, data, self._headers)
        for attempt in range(self._attempts):
            try:
                with urllib.request.urlopen(request, timeout=self._timeout) as answer:  # nosec B310: http or https, see above
                    return dict(json.load(answer))
            except urllib.error.HTTPError as error:
                reason: Exception = _refused(error)
                if error.code != 503:
                    raise reason from error
            except (OSError, http.client.HTTPException) as error:
                reason = ResourceError(f"no answer from {self._url} ({error}); is mixopt serve running there?")
            if attempt + 1 < self._attempts:
                time.sleep(2**attempt)
        raise reason


def _refused(error: urllib.error.HTTPError) -> Exception:
    try:
        text = str(json.load(error)["error"])
    except (ValueError, KeyError, TypeError):
        text = f"HTTP status {error.code} from {error.url}, which is no answer of mixopt serve; correct the url"
    kind = {409: ConflictError}.get(error.code, ConfigError if error.code < 500 else ResourceError)
    return kind(text)
