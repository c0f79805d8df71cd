"""Print docs/json.md: what each verb prints with `--json`, as JSON Schema.

python docs/make_json.py > docs/json.md

A test runs the verbs and validates their answers against these schemas.
"""

from __future__ import annotations

import json
from typing import Any

Schema = dict[str, Any]


def plain(kind: str, text: str = "") -> Schema:
    """Return a schema of a JSON type; `number?` is a number or null."""
    name = kind.rstrip("?")
    return {"type": [name, "null"] if kind.endswith("?") else name} | ({"description": text} if text else {})


def several(items: Schema, text: str = "") -> Schema:
    """Return a schema of a list."""
    return {"type": "array", "items": items} | ({"description": text} if text else {})


def by_name(values: Schema, text: str = "") -> Schema:
    """Return a schema of a mapping whose keys the user chose."""
    return {"type": "object", "additionalProperties": values} | ({"description": text} if text else {})


def record(
    optional: tuple[str, ...] = (), *, null: bool = False, more: Schema | None = None, **fields: Schema
) -> Schema:
    """Return a schema of an object with just these fields, or with `more` ones of one kind."""
    return {
        "type": ["object", "null"] if null else "object",
        "properties": fields,
        "required": [name for name in fields if name not in optional],
        "additionalProperties": False if more is None else more,
    }


NUMBER, NUMBER_OR_NULL, TEXT, COUNT = plain("number"), plain("number?"), plain("string"), plain("integer")
TEXT_OR_NULL = plain("string?")
FLAG = plain("boolean")
WEIGHTS = by_name(plain("number"), "{domain: share of tokens}")
OBJECTIVE = record(
    ("allow_chance",), expression={"description": "text, or {column: weight}"}, unit=TEXT, allow_chance=FLAG
)
RECOMMENDATION = record(
    null=True,
    fidelity=TEXT,
    mean=by_name(NUMBER),
    std=by_name(NUMBER),
    regret_bound=NUMBER_OR_NULL,
    support=several(TEXT),
    recommended_by=TEXT,
    reason=TEXT,
    best_probability=NUMBER_OR_NULL,
    weights=WEIGHTS,
)
ROLE_COUNTS = by_name(by_name(COUNT), "{role: {status: trials}}")

SCHEMAS: dict[str, tuple[str, Schema]] = {
    "init": (
        "Sizes are estimates from a sample; times are null where the text is too short to time.",
        record(
            study=plain("string", "the study file that was written"),
            domains=several(
                record(
                    name=TEXT,
                    path=TEXT,
                    text=plain("string", "column"),
                    files=COUNT,
                    bytes=plain("integer", "on disk"),
                    documents=COUNT,
                    tokens=COUNT,
                    bytes_per_token=NUMBER_OR_NULL,
                )
            ),
            ladder=several(record(name=TEXT, tokens=COUNT, flops=NUMBER)),
            runs_at_top=record(experts=NUMBER, search=NUMBER, validation=NUMBER, total=NUMBER),
            estimated=record(
                tokens_trained=NUMBER,
                flops=NUMBER,
                process_seconds=NUMBER_OR_NULL,
                wall_seconds=NUMBER_OR_NULL,
                workers=COUNT,
                **{"from": TEXT},
            ),
            warnings=several(TEXT),
            next=several(TEXT, "commands"),
        ),
    ),
    "check": (
        "`measured` is null before three runs; its `ladder` is YAML with times as costs.",
        record(
            name=TEXT,
            domains=several(record(name=TEXT, tokens=COUNT, documents=COUNT)),
            eval_sets=several(record(name=TEXT, tokens=COUNT, bytes=COUNT)),
            objective=OBJECTIVE,
            ladder=several(record(name=TEXT, model=TEXT, tokens=COUNT, flops=NUMBER, cost=NUMBER)),
            params=record(total=COUNT, active=COUNT),
            epochs_at_top=by_name(NUMBER),
            constraints=plain("object"),
            runs_at_top=record(
                ("seeds",), seeds=NUMBER, experts=NUMBER, search=NUMBER, validation=NUMBER, total=NUMBER
            ),
            estimated=record(process_seconds=NUMBER, wall_seconds=NUMBER, flops=NUMBER, **{"from": TEXT}),
            measured=record(null=True, seconds=by_name(NUMBER), ladder=TEXT_OR_NULL, **{"from": TEXT}),
            changed_costs=several(TEXT),
        ),
    ),
    "run": (
        "Losses inside `recommendation` are nats per token (`objective` is in its unit); `comparison` is in the objective's unit.",
        record(
            name=TEXT,
            objective=OBJECTIVE,
            stopped=TEXT_OR_NULL,
            recommendation=RECOMMENDATION,
            contenders=several(record(label=TEXT, weights=WEIGHTS, epochs=by_name(NUMBER_OR_NULL))),
            epochs_at_tokens=COUNT,
            comparison=several(
                record(
                    label=TEXT,
                    column=TEXT,
                    num_seeds=COUNT,
                    mean=NUMBER_OR_NULL,
                    spread=NUMBER_OR_NULL,
                    num_pairs=COUNT,
                    difference=NUMBER_OR_NULL,
                    standard_error=NUMBER_OR_NULL,
                    freedom=COUNT,
                    predicted_mean=NUMBER_OR_NULL,
                    predicted_std=NUMBER_OR_NULL,
                )
            ),
            costs=several(
                record(
                    role=TEXT,
                    num_trials=COUNT,
                    num_done=COUNT,
                    cost=NUMBER,
                    process_seconds=NUMBER,
                    wall_seconds=NUMBER,
                )
            ),
            search_spent=NUMBER,
            files=record(run_directory=TEXT, mixture=TEXT, report=TEXT, ledger=TEXT),
            already_complete=FLAG,
            phase_seconds=by_name(NUMBER),
        ),
    ),
    "status": (
        "`budget` is null where the search has none.",
        record(
            name=TEXT,
            run_directory=TEXT,
            trials=ROLE_COUNTS,
            running=several(record(id=TEXT, fidelity=TEXT, tokens=COUNT)),
            troubled=several(record(id=TEXT, status=TEXT, note=TEXT)),
            best=record(null=True, id=TEXT, objective=NUMBER, weights=WEIGHTS),
            budget=NUMBER_OR_NULL,
            spent=NUMBER,
            stopped=TEXT_OR_NULL,
            recommended={**WEIGHTS, "type": ["object", "null"]},
            predicted=NUMBER_OR_NULL,
            predicted_std=NUMBER_OR_NULL,
            predictor=several(
                record(
                    column=TEXT,
                    fidelity=TEXT,
                    num_mixtures=COUNT,
                    rank=NUMBER_OR_NULL,
                    low=NUMBER_OR_NULL,
                    high=NUMBER_OR_NULL,
                    shift=NUMBER_OR_NULL,
                    error=NUMBER_OR_NULL,
                    spread=NUMBER_OR_NULL,
                    verdict=TEXT,
                ),
                "how well the MDE agrees with measured mixtures",
            ),
        ),
    ),
    "predict": (
        "Further keys are `mean/<column>` and `std/<column>`. With `--runs`: `objective`, `fidelity`, `runs`, `notes`, and "
        "`predictions` or, with `--out`, `out` and `rows`.",
        record(
            ("objective", "fidelity", "runs", "notes", "out", "rows", "predictions"),
            objective={},
            fidelity=TEXT,
            runs=COUNT,
            notes=several(TEXT),
            out=TEXT,
            rows=COUNT,
            predictions=several(
                record(
                    ("run", "weights", "fidelity", "unit"),
                    more=NUMBER_OR_NULL,
                    run=TEXT,
                    weights=WEIGHTS,
                    fidelity=TEXT,
                    unit=TEXT,
                )
            ),
        ),
    ),
    "suggest": (
        "`fewer_because` says why there are fewer suggestions than asked for, else it is null.",
        record(
            suggestions=several(
                record(
                    ("candidate",),
                    run=TEXT,
                    fidelity=TEXT,
                    weights=WEIGHTS,
                    cost=NUMBER_OR_NULL,
                    reason=TEXT,
                    candidate=TEXT,
                )
            ),
            out=TEXT_OR_NULL,
            fewer_because=TEXT_OR_NULL,
        ),
    ),
    "tell": (
        "Numbers of runs, except for `failed` and `pending`, which are ids.",
        record(
            told=COUNT,
            own=COUNT,
            failed=several(TEXT),
            known_already=COUNT,
            ignored_columns=several(TEXT),
            pending=several(TEXT),
            budget_left=NUMBER_OR_NULL,
            best=record(null=True, run=TEXT, weights=WEIGHTS, objective=NUMBER),
            recommendation=RECOMMENDATION,
        ),
    ),
    "serve": ("Printed before it listens.", record(url=TEXT, study=TEXT, token_needed=FLAG)),
    "report": ("", record(report=plain("string", "the page that was written"))),
    "convert": (
        "",
        record(
            out=TEXT,
            files=several(TEXT),
            rows=COUNT,
            rungs=several(record(name=TEXT, rows=COUNT, cost=NUMBER)),
            domains=several(TEXT),
            columns=several(TEXT),
            notes=several(TEXT),
        ),
    ),
    "export": (
        "",
        record(
            format=TEXT,
            unit=plain("string", "tokens or documents"),
            weights=by_name(NUMBER),
            token_shares=by_name(NUMBER),
            left_out=several(TEXT),
            origin=TEXT,
            notes=several(TEXT),
            out=TEXT_OR_NULL,
            text=TEXT,
        ),
    ),
    "export-model": (
        "Losses are nats per token.",
        record(
            folder=TEXT,
            study=TEXT,
            trial=TEXT,
            rung=TEXT,
            training_tokens=COUNT,
            seed=COUNT,
            mixture=WEIGHTS,
            losses=by_name(NUMBER),
            parameters=COUNT,
            tokenizer=TEXT,
            fingerprint=TEXT,
            architecture=TEXT,
            dropped_bias=plain("object?", "what `--architecture mixtral` changes"),
        ),
    ),
    "replay": (
        "Means and standard errors over seeds; `pooled` is over random objectives.",
        record(
            results=several(plain("object")),
            pooled=several(plain("object")),
            objectives=plain("object"),
            notes=several(TEXT),
        ),
    ),
    "bench": ("Each bench has its own further keys.", record(more={}, name=TEXT)),
    "dashboard": ("Starts nothing.", record(url=TEXT, command=several(TEXT, "starts the server; empty if one runs"))),
    "sync": ("", record(trials=COUNT, tracking_uri=TEXT)),
    "doctor": ("", record(ok=FLAG, findings=several(record(what=TEXT, ok=FLAG, detail=TEXT)))),
}

INTRODUCTION = """# What `--json` prints

<!-- printed by docs/make_json.py -->

With `--json` a verb prints one JSON document on stdout; logs stay on stderr, and exit codes do not change. Keys are only
added within a minor version. The schemas below (JSON Schema 2020-12) are checked against real answers by a test. Times
are seconds, costs are runs at the top rung, weights are shares of tokens.
"""


def page() -> str:
    """Return the page."""
    parts = [INTRODUCTION]
    for verb, (note, schema) in SCHEMAS.items():
        text = f"## `mixopt {verb}`\n\n" + (f"{note}\n\n" if note else "")
        parts.append(f"{text}```json\n{_shown(schema)}\n```\n")
    return "\n".join(parts)


def _shown(schema: Schema) -> str:
    """Return a schema with one line per top-level key."""
    fields = [f"    {json.dumps(key)}: {json.dumps(value)}" for key, value in schema["properties"].items()]
    rest = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in schema.items() if key != "properties"]
    return "{\n" + ",\n".join(['  "properties": {\n' + ",\n".join(fields) + "\n  }", *rest]) + "\n}"


if __name__ == "__main__":
    print(page(), end="")
