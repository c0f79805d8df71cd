"""The HTTP service on an external study: its routes, and one form for every error.

    app = build_app(ExternalStudy.open("study.yaml"), token="...")

What the calls do is in `desk.py`, what they say in `messages.py`, who may call in
`gate.py`. The only file that imports FastAPI; nothing imports it when the command line
starts. It opens no socket: `cli_serve.py` does.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from pydantic import BaseModel
from starlette.exceptions import HTTPException as AnyHTTPException

import mixopt
from mixopt.config import describe
from mixopt.errors import (
    ConfigError,
    ConflictError,
    MixoptError,
    MixtureError,
    ResourceError,
    StudyBusyError,
    StudyChangedError,
)

from . import messages
from .desk import Desk, State
from .external import ExternalStudy
from .gate import MAX_BODY_BYTES, Gate, problem

_SHOWN = 5

_DESCRIPTION = (
    "Ask which runs to train next, tell what they showed. Every call may be repeated: the same run told twice is one "
    "observation, and `suggest` under the same `request` key returns the same runs."
)
_REQUESTS: dict[str, type[BaseModel]] = {
    "/suggest": messages.SuggestRequest,
    "/tell": messages.TellRequest,
    "/predict": messages.PredictRequest,
}
_PROBLEMS = {
    400: "the body is no JSON",
    405: "the path has no such method",
    409: "the request contradicts what the study knows: other numbers for a run, another request under the same key",
    413: f"the body is longer than {MAX_BODY_BYTES:,} bytes",
    415: "the body is not declared as application/json",
    422: "a field is missing, unknown or cannot be used",
    503: "another process holds the study, or the disk is full; repeat the request later",
}


def build_app(study: ExternalStudy, *, token: str | None = None, patience_seconds: float = 10.0) -> FastAPI:
    """Return the service on a study; the study file's settings are recorded in its ledger.

    Args:
        study: The study.
        token: What clients must send as `Authorization: Bearer TOKEN`. None serves those
            on this machine only: other values of the header `Host` are refused.
        patience_seconds: How long a call waits for another process that holds the study.

    Raises:
        StudyChangedError: If domains or rungs changed since the ledger was written.
        StudyBusyError: If another process holds the study longer.
    """
    refused = {401: "the token is missing or wrong"} if token else {403: "the request was not sent to this machine"}
    app = FastAPI(
        title="mixopt",
        version=mixopt.__version__,
        description=_DESCRIPTION,
        # The interactive pages would load scripts from another server.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.desk = Desk(study, patience_seconds=patience_seconds)
    scheme = HTTPBearer(auto_error=False, description="the token that `mixopt serve` was started with")
    app.include_router(
        router,
        # Checked by `Gate`, before a body is read; here only for the OpenAPI document.
        dependencies=[Security(scheme)] if token else [],
        responses={
            code: {"model": messages.Problem, "description": text} for code, text in (_PROBLEMS | refused).items()
        },
    )
    app.add_api_route("/health", _health, methods=["GET"], summary="Whether the service answers", tags=["service"])
    app.add_exception_handler(MixoptError, _answer_mixopt_error)
    app.add_exception_handler(RequestValidationError, _answer_validation_error)
    app.add_exception_handler(AnyHTTPException, _answer_http_error)
    app.add_exception_handler(Exception, _answer_bug)
    app.add_middleware(Gate, token=token)
    return app


# --- routes ------------------------------------------------------------------


def _desk(request: Request) -> Desk:
    desk: Desk = request.app.state.desk
    return desk


def _json_only(request: Request) -> None:
    """Refuse forms and plain text: a web page may send those anywhere without asking."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise HTTPException(
            415, f"expected Content-Type: application/json, got {kind or 'none'}; send the body as JSON"
        )


TheDesk = Annotated[Desk, Depends(_desk)]
router = APIRouter(tags=["study"])


@router.post("/suggest", summary="Suggest runs to train", dependencies=[Depends(_json_only)])
def suggest(body: messages.SuggestRequest, desk: TheDesk) -> messages.Suggestions:
    """Suggest runs and record them as pending; asked again, suggest others, but the same under the same key."""
    return desk.suggest(body)


@router.post("/tell", summary="Tell what runs showed", dependencies=[Depends(_json_only)])
def tell(body: messages.TellRequest, desk: TheDesk) -> messages.Told:
    """Record results: all of them or, on an error, none. What is known just so is not recorded again."""
    return desk.tell(body)


@router.post("/predict", summary="Predict mixtures", dependencies=[Depends(_json_only)])
def predict(body: messages.PredictRequest, desk: TheDesk) -> messages.Predictions:
    """Predict the columns and the objective of mixtures, without training them."""
    return desk.predict(body)


@router.get("/status", summary="Where the study stands")
def status(desk: TheDesk) -> messages.StudyStatus:
    """Return what the study is about, what is pending and done, the best run and the budget."""
    return desk.status()


@router.get("/recommendation", summary="The mixture to use")
def recommendation(desk: TheDesk) -> messages.Recommended:
    """Return the mixture to use given all that was told; it is recorded in the ledger where it changed."""
    return desk.recommendation()


@router.get("/runs", summary="List runs")
def runs(
    desk: TheDesk,
    state: Annotated[State | None, Query(description="only the runs in this state; default all")] = None,
) -> messages.Runs:
    """Return the runs of the study with what they showed."""
    return desk.runs(state)


async def _health() -> messages.Health:
    """Answer at once, also while the study is at work; needs no token."""
    return messages.Health(ok=True)


# --- errors ------------------------------------------------------------------


def _answer_mixopt_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, MixoptError)
    headers = {"Retry-After": "1"} if isinstance(error, StudyBusyError) else {}
    return problem(_code(error), str(error), field=error.field, headers=headers)


def _code(error: MixoptError) -> int:
    """Return the HTTP status of an error: 4xx where the request is at fault, 503 where waiting or a person helps."""
    if isinstance(error, ConflictError):
        return 409
    if isinstance(error, StudyBusyError | StudyChangedError | ResourceError):
        return 503
    return 422 if isinstance(error, ConfigError | MixtureError) else 500


def _answer_validation_error(request: Request, error: Exception) -> JSONResponse:
    """Describe every wrong field as the command line does for a study file."""
    assert isinstance(error, RequestValidationError)
    items = [{**item, "loc": tuple(item["loc"])[1:] or ("body",)} for item in error.errors()]
    if items[0]["type"] == "json_invalid":
        reason = items[0]["ctx"]["error"]
        return problem(400, f"the body is no JSON: {reason} at character {items[0]['loc'][0]}; send one JSON object")
    model = _REQUESTS.get(request.url.path, messages.Problem)
    lines = [describe({**item, "input": _shortened(item["input"])}, model) for item in items[:_SHOWN]]
    lines += [f"and {len(items) - _SHOWN} more"] if len(items) > _SHOWN else []
    place = ".".join(str(part) for part in items[0]["loc"]) if len(lines) == 1 else None
    return problem(422, "\n".join(lines), field=place, remedy="correct the request as /openapi.json describes it")


def _answer_http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, AnyHTTPException)
    text = {
        404: f"there is no {request.url.path}; the paths are in /openapi.json",
        405: f"{request.url.path} has no method {request.method}; the methods are in /openapi.json",
        400: "the body is no JSON; send one JSON object",
    }.get(error.status_code, str(error.detail))
    return problem(error.status_code, text, headers=dict(error.headers or {}))


def _answer_bug(request: Request, error: Exception) -> JSONResponse:
    return problem(500, f"mixopt failed ({type(error).__name__}); the log of mixopt serve has the details")


def _shortened(value: Any) -> Any:
    return value[:100] if isinstance(value, str | bytes) else value if isinstance(value, int | float) else {}
