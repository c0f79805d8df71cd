"""What clients and `mixopt serve` say to each other: one model per request and answer.

The OpenAPI document is made from these models, so each field is described here and
nowhere else. Numbers are finite; unknown fields are errors. What must hold between
fields is checked where the study knows it, in `reports.py` and `telling.py`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

# Far above any use, low enough that one request cannot hold the study for hours.
MOST_RUNS = 1_000
MOST_NAMES = 10_000

Name = Annotated[str, Field(min_length=1, max_length=200)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
Weights = Annotated[
    dict[Name, Share],
    Field(min_length=1, max_length=MOST_NAMES, description="{domain: share of tokens}; a missing domain has weight 0"),
]
Losses = Annotated[
    dict[Name, Finite], Field(max_length=MOST_NAMES, description="{evaluation set: loss}, lower is better")
]
Scores = Annotated[dict[Name, Finite], Field(max_length=MOST_NAMES, description="{task: score}, higher is better")]
Moments = dict[str, float | None]

_WEIGHTS: dict[str, JsonValue] = {"web": 0.6, "code": 0.3, "books": 0.1}
_SUGGESTION: dict[str, JsonValue] = {
    "run": "search-000",
    "fidelity": "60m",
    "weights": _WEIGHTS,
    "cost": 1.0,
    "reason": "one of the first runs, which cover the mixtures evenly",
    "candidate": None,
}


class _Request(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


# --- requests ----------------------------------------------------------------


class Candidate(_Request):
    """A run that can be trained."""

    run: Name = Field(description="your name for it")
    fidelity: Name = Field(description="name of its rung")
    weights: Weights


class SuggestRequest(_Request):
    """Which runs to suggest."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"num": 4, "request": "node-7/batch-2"}]})

    num: int | None = Field(
        None, ge=1, le=MOST_RUNS, description="most runs to suggest; default search.batch_size of the study file"
    )
    request: str | None = Field(
        None,
        pattern=r"^[!-~]{1,200}$",
        description="a key of your own, printable ASCII without spaces: asked again under it, the same runs are returned, "
        "also after a restart; a key under which nothing was suggested stays free",
    )
    candidates: list[Candidate] | None = Field(
        None, min_length=1, max_length=MOST_NAMES, description="if given, only these are suggested, each once"
    )


class RunReport(_Request):
    """What one run showed."""

    run: Name = Field(description="id of the suggestion, or an id of your own for a run the study did not suggest")
    losses: Losses = Field({})
    scores: Scores = Field({})
    noise: dict[Name, Share] = Field(
        {}, max_length=MOST_NAMES, description="{column: known standard deviation}, columns as loss/<name>"
    )
    fidelity: Name | None = Field(None, description="name of the rung; needed for a run of your own only")
    weights: Weights | None = Field(None, description="what it was trained on; needed for a run of your own only")
    seed: int | None = Field(None, ge=0, lt=2**63, description="random seed of a run of your own")
    failed: bool = Field(False, description="true for a run that failed; then without losses and scores")


class TellRequest(_Request):
    """What runs showed: all of them are recorded or, on an error, none."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "runs": [
                        {"run": "search-000", "losses": {"chat": 2.31, "python": 1.02}},
                        {"run": "search-001", "failed": True},
                        {"run": "mine-1", "fidelity": "60m", "weights": _WEIGHTS, "losses": {"chat": 2.4}},
                    ]
                }
            ]
        }
    )

    runs: list[RunReport] = Field(min_length=1, max_length=MOST_NAMES, description="one entry per run")


class PredictRequest(_Request):
    """Which mixtures to predict."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"mixtures": [_WEIGHTS], "fidelity": "60m"}]})

    mixtures: list[Weights] = Field(min_length=1, max_length=MOST_RUNS, description="mixtures; each sums to 1")
    fidelity: Name | None = Field(None, description="name of the rung; default the last one, the target")


# --- answers -----------------------------------------------------------------


class SuggestedRun(_Answer):
    """A run to train."""

    model_config = ConfigDict(json_schema_extra={"examples": [_SUGGESTION]})

    run: str = Field(description="its id, to be told with the result")
    fidelity: str = Field(description="name of the rung")
    weights: dict[str, float] = Field(description="{domain: share of tokens}, in the study's order; they sum to 1")
    cost: float = Field(description="price of the run, in the unit of the study's ladder")
    reason: str = Field(description="why, in words")
    candidate: str | None = Field(description="the candidate it stands for")


class Suggestions(_Answer):
    """Runs to train; they are pending from now on."""

    suggestions: list[SuggestedRun] = Field(description="at most as many as asked for")
    fewer_because: str | None = Field(description="why there are fewer than asked for")


class Told(_Answer):
    """What was recorded."""

    told: list[str] = Field(description="runs of which something new was recorded")
    own: list[str] = Field(description="those of them that are new ones of your own")
    failed: list[str] = Field(description="those of them that were told as failed")
    already_known: list[str] = Field(description="runs that the study knew just so; nothing was recorded for them")
    ignored_columns: list[str] = Field(description="columns that the study file does not list")
    notes: list[str] = Field(description="what was changed, such as weights that were rescaled to sum to 1")
    pending: int = Field(description="suggested runs that were not told yet")


class Predicted(_Answer):
    """What is expected of one mixture."""

    weights: dict[str, float] = Field(description="the mixture, over all domains")
    fidelity: str = Field(description="name of the rung")
    mean: Moments = Field(description="{column: predicted mean}, and `objective`")
    std: Moments = Field(description="{column: standard deviation of the prediction}; null where there is none")


class Predictions(_Answer):
    """Predictions, in the order of the mixtures."""

    predictions: list[Predicted] = Field(description="one per mixture")


class Recommended(_Answer):
    """The mixture to use, and how sure the search is."""

    weights: dict[str, float] = Field(description="{domain: share of tokens}")
    fidelity: str = Field(description="the rung the prediction is about")
    mean: Moments = Field(description="{column: predicted mean}, and `objective`")
    std: Moments = Field(description="{column: standard deviation of the prediction}")
    regret_bound: float | None = Field(
        description="with probability 0.95 no feasible mixture is better by more, under the surrogate"
    )
    best_probability: float | None = Field(
        description="that no feasible mixture is better by more than the noise of one run, under the surrogate"
    )
    support: list[str] = Field(description="runs it rests on")
    recommended_by: str = Field(description="name of the optimizer")
    reason: str = Field(description="how it was chosen, in words")


class Best(_Answer):
    """The best run measured at the target rung."""

    run: str = Field(description="its id")
    objective: float = Field(description="its objective; lower is better")
    weights: dict[str, float] = Field(description="{domain: share of tokens}")


class Rung(_Answer):
    """One rung of the ladder."""

    name: str = Field(description="name of the rung")
    cost: float = Field(description="price of a run, in the unit of the study file")


class StudyStatus(_Answer):
    """Where the study stands."""

    name: str = Field(description="name of the study")
    domains: list[str] = Field(description="domains, in the order of the weights")
    objective: str | dict[str, float] = Field(description="what is minimized")
    columns: list[str] = Field(description="columns that runs report; empty before the first run is told")
    ladder: list[Rung] = Field(description="rungs; the last is the target")
    runs: dict[Literal["pending", "done", "failed"], int] = Field(description="number of runs by state")
    pending: list[str] = Field(description="suggested runs that were not told yet, oldest first")
    budget: float | None = Field(description="of all suggested runs, in runs of the last rung; null is unlimited")
    spent: float = Field(description="cost of all suggested runs, in runs of the last rung")
    best: Best | None = Field(description="the best run measured at the target rung")


class KnownRun(_Answer):
    """One run of the ledger."""

    run: str = Field(description="its id")
    state: Literal["pending", "done", "failed"] = Field(description="pending until it is told")
    own: bool = Field(description="whether it is the user's own, not a suggestion")
    fidelity: str = Field(description="name of the rung")
    weights: dict[str, float] = Field(description="{domain: share of tokens}")
    reason: str = Field(description="why it was suggested")
    candidate: str | None = Field(description="the candidate it stands for")
    losses: dict[str, float] = Field(description="{evaluation set: loss}")
    scores: dict[str, float] = Field(description="{task: score}")
    objective: float | None = Field(description="its objective; null where a column of it is missing")


class Runs(_Answer):
    """Runs of the ledger, in its order."""

    runs: list[KnownRun] = Field(description="suggested runs and the user's own")


class Health(_Answer):
    """That the service answers."""

    ok: Literal[True] = Field(description="always true")


class Problem(_Answer):
    """What was wrong with a request, and what to do about it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "error": "unknown rung '7b'; the ladder has 60m, 1b",
                    "field": "fidelity",
                    "remedy": "the ladder has 60m, 1b",
                }
            ]
        }
    )

    error: str = Field(description="what was expected and what came, as the command line says it")
    field: str | None = Field(description="the place in the request, such as runs.3.losses; null where there is none")
    remedy: str | None = Field(description="the part of the error that says what to do")
