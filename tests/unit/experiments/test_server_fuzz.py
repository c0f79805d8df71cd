"""Schemathesis against the service's own OpenAPI document: no answer is a failure of the service."""

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from mixopt.experiments.server import build_app
from tests.unit.experiments.http_service import NAMES, TOKEN, a_study, served

schemathesis = pytest.importorskip("schemathesis")
from schemathesis.specs.openapi.checks import positive_data_acceptance  # noqa: E402

torch.set_num_threads(1)

# What fits the schema may still name an unknown domain or rung, or not sum to 1: 422 is right.
ALLOWED = [positive_data_acceptance]
QUIET = {"deadline": None, "derandomize": True, "suppress_health_check": list(hypothesis.HealthCheck), "database": None}


def fuzz(num_examples):
    """Send generated requests of every operation; each answer is checked against the document."""
    # The budget bounds what thousands of suggestions would pile up.
    study = a_study(search={"budget": 200})
    schema = schemathesis.openapi.from_asgi("/openapi.json", build_app(study, token=TOKEN))
    num_requests = 0
    for found in schema.get_all_operations():
        operation = found.ok()
        cases = [operation.as_strategy()]
        if operation.method == "post":
            cases.append(operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE))
        for strategy in cases:

            @hypothesis.settings(max_examples=num_examples, **QUIET)
            @hypothesis.given(case=strategy)
            def send(case):
                nonlocal num_requests
                num_requests += 1
                case.call_and_validate(
                    headers={"Authorization": f"Bearer {TOKEN}"}, excluded_checks=ALLOWED, timeout=300
                )

            send()
    return num_requests


def test_generated_requests_get_answers_that_the_openapi_document_describes():
    assert fuzz(4) >= 25


@pytest.mark.faults
def test_thousands_of_generated_requests_get_answers_that_the_openapi_document_describes():
    assert fuzz(400) >= 2_000


# Schemathesis knows no domain of the study, so what comes near to a right request is made here.
NUMBERS = st.one_of(
    st.sampled_from([0, 1, 0.5, 0.3333, -1, 1e300, 5e-324, 2**63]), st.floats(allow_nan=False), st.none()
)
WORDS = st.sampled_from(
    [*NAMES, "small", "large", "search-000", "search-001", "mine", "loss/chat", "chat", "", " a", "\x00"]
)
VALUES = st.dictionaries(WORDS, NUMBERS, max_size=3)
ROWS = st.fixed_dictionaries(
    {"run": WORDS},
    optional={
        "losses": VALUES, "scores": VALUES, "noise": VALUES, "fidelity": WORDS, "failed": st.booleans(), "seed": NUMBERS,
        "weights": st.one_of(VALUES, st.sampled_from([{"web": 1}, {"web": 0.5, "code": 0.5}, {"books": 1.005}])),
    },
)  # fmt: skip
BODIES = st.one_of(
    st.tuples(st.just("/tell"), st.fixed_dictionaries({"runs": st.lists(ROWS, max_size=3)})),
    st.tuples(
        st.just("/predict"), st.fixed_dictionaries({"mixtures": st.lists(VALUES, max_size=2), "fidelity": WORDS})
    ),
    st.tuples(
        st.just("/suggest"),
        st.fixed_dictionaries(
            {"num": st.integers(-1, 3)}, optional={"request": WORDS, "candidates": st.lists(ROWS, max_size=2)}
        ),
    ),
)


@pytest.mark.parametrize("num", [150, pytest.param(5_000, marks=pytest.mark.faults)])
def test_requests_that_are_nearly_right_never_fail_the_service_and_leave_it_at_work(num):
    codes = set()
    with served(a_study(search={"budget": 1e9})) as service:

        @hypothesis.settings(max_examples=num, **QUIET)
        @hypothesis.given(BODIES)
        def send(call):
            reply = service.post(*call)
            codes.add(reply.code)
            assert reply.code in (200, 409, 422), (call, reply.text)

        send()
        assert service.get("/status").code == service.get("/runs").code == 200
    assert {200, 422} <= codes
