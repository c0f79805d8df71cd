import http.client
import json
import logging
import re
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from pydantic import BaseModel

from mixopt.errors import ConfigError, ConflictError, ResourceError
from mixopt.experiments import messages
from mixopt.experiments.client import Client
from mixopt.experiments.external import ExternalStudy
from mixopt.experiments.gate import MAX_BODY_BYTES, OPEN_PATHS, is_loopback
from mixopt.experiments.reports import Report, as_table
from mixopt.experiments.server import build_app
from mixopt.runs import RunsTable
from mixopt.storage import RunDirectory
from mixopt.study import Study
from tests.unit.experiments.http_service import NAMES, TOKEN, a_study, served

torch.set_num_threads(1)

HALF = {"web": 0.5, "code": 0.5}
OWN = {"run": "mine", "fidelity": "large", "weights": HALF, "losses": {"chat": 2.0}}


def ledger_bytes(study):
    return RunDirectory(study.directory).ledger.read_bytes()


def is_problem(reply, code, *parts, field=None):
    """The answer is an error in the one form, with this status, and says these things."""
    assert reply.code == code, reply.text
    assert set(reply.data) == {"error", "field", "remedy"}
    assert [part for part in parts if part not in reply.data["error"]] == [], reply.text
    assert field in (None, reply.data["field"]), reply.text
    return True


# --- the same as in Python ------------------------------------------------------


def test_the_service_suggests_predicts_and_recommends_what_the_study_does_in_python():
    reference = a_study()
    expected = reference.ask(3)
    for number, suggestion in enumerate(expected):
        reference.tell(suggestion.run, losses={"chat": 2.0 + number})
    with served(a_study()) as service:
        found = service.post("/suggest", {"num": 3}).data["suggestions"]
        runs = [{"run": s["run"], "losses": {"chat": 2.0 + i}} for i, s in enumerate(found)]
        assert service.post("/tell", {"runs": runs}).code == 200
        recommended = service.get("/recommendation").data
        predicted = service.post("/predict", {"mixtures": [HALF]}).data["predictions"][0]
    assert [(s["run"], s["fidelity"], s["weights"], s["cost"]) for s in found] == [
        (s.run, s.fidelity, s.weights, s.cost) for s in expected
    ]
    assert recommended["weights"] == reference.recommend().mixture.as_dict()
    assert recommended["mean"] == dict(reference.recommend().mean)
    assert predicted["mean"]["objective"] == reference.predict([HALF]).mean["objective"][0]


def test_the_status_counts_runs_and_names_the_best():
    with served(a_study(search={"budget": 5})) as service:
        runs = [s["run"] for s in service.post("/suggest", {"num": 3}).data["suggestions"]]
        told = [{"run": runs[0], "losses": {"chat": 3.0}}, {"run": runs[1], "failed": True}]
        service.post("/tell", {"runs": [*told, OWN]})
        status = service.get("/status").data
        listed = {state: service.get(f"/runs?state={state}").data["runs"] for state in ("pending", "done", "failed")}
        assert len(service.get("/runs").data["runs"]) == 4
    assert status["runs"] == {"pending": 1, "done": 2, "failed": 1}
    assert (status["pending"], status["columns"], status["domains"]) == ([runs[2]], ["loss/chat"], list(NAMES))
    assert (status["budget"], status["spent"]) == (5, 3)
    assert (status["best"]["run"], status["best"]["objective"]) == ("mine", 2.0)
    assert {state: [run["run"] for run in found] for state, found in listed.items()} == {
        "pending": [runs[2]], "done": [runs[0], "mine"], "failed": [runs[1]],
    }  # fmt: skip
    assert [(run["own"], run["losses"], run["objective"]) for run in listed["done"]] == [
        (False, {"chat": 3.0}, 3.0), (True, {"chat": 2.0}, 2.0),
    ]  # fmt: skip


def test_without_a_told_run_there_is_nothing_to_recommend(tmp_path):
    study = a_study(tmp_path / "run")
    with served(study) as service:
        before = ledger_bytes(study)
        assert is_problem(service.get("/recommendation"), 409, "no run was told yet")
    assert ledger_bytes(study) == before


def test_only_candidates_are_suggested_where_they_are_given():
    rows = [{"run": f"row-{i}", "fidelity": "large", "weights": {name: 1}} for i, name in enumerate(NAMES)]
    with served(a_study()) as service:
        first = service.post("/suggest", {"num": 2, "candidates": rows}).data
        rest = service.post("/suggest", {"num": 5, "candidates": rows}).data
    found = first["suggestions"] + rest["suggestions"]
    assert sorted(s["candidate"] for s in found) == ["row-0", "row-1", "row-2"]
    assert all(s["weights"][NAMES[int(s["candidate"][-1])]] == 1 for s in found)
    assert "open among the candidates" in rest["fewer_because"]


def test_weights_that_are_rounded_are_normalized_and_the_answer_says_so():
    with served(a_study()) as service:
        answer = service.post("/tell", {"runs": [{**OWN, "weights": {"web": 0.333, "code": 0.666}}]}).data
        weights = service.get("/runs").data["runs"][0]["weights"]
    assert sum(weights.values()) == pytest.approx(1, abs=1e-12)
    assert "normalized the weights of 1 of 1 rows" in answer["notes"][0]


# --- calls may be repeated --------------------------------------------------------


def test_the_same_key_gives_the_same_runs_also_after_a_restart(tmp_path):
    body = {"num": 2, "request": "batch-1"}
    with served(a_study(tmp_path / "run")) as service:
        first = service.post("/suggest", body).data
        assert service.post("/suggest", body).data == first
        other = service.post("/suggest", {"num": 2}).data
    with served(a_study(tmp_path / "run")) as service:
        assert service.post("/suggest", body).data == first
        assert service.get("/status").data["runs"]["pending"] == 4
    runs = [s["run"] for s in first["suggestions"] + other["suggestions"]]
    assert len(set(runs)) == 4


def test_another_request_under_a_used_key_is_a_conflict():
    with served(a_study()) as service:
        service.post("/suggest", {"num": 2, "request": "k"})
        assert is_problem(
            service.post("/suggest", {"num": 3, "request": "k"}),
            409,
            "request 'k'",
            "choose a new key",
            field="request",
        )


def test_a_key_under_which_nothing_was_suggested_stays_free():
    with served(a_study(search={"budget": 1})) as service:
        service.post("/suggest", {"num": 1})
        for num in (1, 2):
            empty = service.post("/suggest", {"num": num, "request": "k"}).data
            assert empty["suggestions"] == []
            assert "the budget is spent" in empty["fewer_because"]


def test_a_run_told_twice_is_one_observation_and_the_second_answer_says_it_is_known(tmp_path):
    study = a_study(tmp_path / "run")
    with served(study) as service:
        run = service.post("/suggest", {"num": 1}).data["suggestions"][0]["run"]
        body = {"runs": [{"run": run, "losses": {"chat": 2.5}}]}
        first = service.post("/tell", body)
        before = ledger_bytes(study)
        again = service.post("/tell", body)
    assert (first.code, first.data["told"], first.data["already_known"]) == (200, [run], [])
    assert (again.code, again.data["told"], again.data["already_known"]) == (200, [], [run])
    assert ledger_bytes(study) == before
    assert len(Study(study.directory).observations) == 1


@pytest.mark.parametrize(
    ("first", "second", "part"),
    [
        ({"losses": {"chat": 2.0}}, {"losses": {"chat": 3.0}}, "loss/chat was told as 2 before, now as 3"),
        ({"failed": True}, {"losses": {"chat": 3.0}}, "told as failed before"),
        ({"losses": {"chat": 2.0}}, {"failed": True}, "told with values before"),
        ({"losses": {"chat": 2.0}}, {"losses": {"chat": 2.0}, "fidelity": "small"}, "its fidelity is large"),
        ({"losses": {"chat": 2.0}}, {"losses": {"chat": 2.0}, "weights": {"web": 1}}, "its mixture differs"),
    ],
)
def test_a_contradiction_is_a_conflict_that_names_the_run_and_nothing_is_recorded(tmp_path, first, second, part):
    study = a_study(tmp_path / "run")
    with served(study) as service:
        service.post("/tell", {"runs": [{**OWN, **first, "losses": first.get("losses", {})}]})
        before = ledger_bytes(study)
        bodies = [{**OWN, "run": "new"}, {"run": "mine", **second}]
        assert is_problem(
            service.post("/tell", {"runs": bodies}), 409, "nothing was recorded", "run 'mine'", part, field="runs.1"
        )
    assert ledger_bytes(study) == before


# --- many clients at once -----------------------------------------------------------


def at_once(num, call):
    """Make `num` calls that start together."""
    barrier = threading.Barrier(num)

    def one(number):
        barrier.wait()
        return call(number)

    with ThreadPoolExecutor(num) as pool:
        return list(pool.map(one, range(num)))


def test_eight_clients_at_once_never_get_the_same_trial(tmp_path):
    with served(a_study(tmp_path / "run")) as service:
        answers = at_once(8, lambda _: [service.post("/suggest", {"num": 2}) for _ in range(3)])
    runs = [s["run"] for client in answers for answer in client for s in answer.data["suggestions"]]
    assert len(runs) == len(set(runs)) == 48
    assert [trial.id for trial in Study(tmp_path / "run").trials] == sorted(runs)


def test_eight_clients_with_one_key_get_the_same_trials(tmp_path):
    with served(a_study(tmp_path / "run")) as service:
        answers = at_once(8, lambda _: service.post("/suggest", {"num": 2, "request": "k"}).data)
    assert all(answer == answers[0] for answer in answers)
    assert len(Study(tmp_path / "run").trials) == 2


def test_eight_clients_that_tell_one_run_differently_are_told_apart(tmp_path):
    with served(a_study(tmp_path / "run")) as service:
        codes = at_once(8, lambda i: service.post("/tell", {"runs": [{**OWN, "losses": {"chat": 1.0 + i % 2}}]}).code)
    assert sorted(codes) == [200] * 4 + [409] * 4
    assert len(Study(tmp_path / "run").observations) == 1


def test_two_services_on_one_study_take_turns(tmp_path):
    with served(a_study(tmp_path / "run")) as one, served(a_study(tmp_path / "run")) as two:
        answers = at_once(4, lambda i: [(one, two)[i % 2].post("/suggest", {"num": 1}) for _ in range(3)])
    runs = [s["run"] for client in answers for answer in client for s in answer.data["suggestions"]]
    assert len(runs) == len(set(runs)) == 12


# --- the lock of the study ----------------------------------------------------------


def test_a_process_that_holds_the_study_makes_calls_wait_and_then_fail_as_unavailable(tmp_path):
    with served(a_study(tmp_path / "run"), patience_seconds=0.2) as service:
        with RunDirectory(tmp_path / "run").locked():
            reply = service.post("/suggest", {"num": 1})
            assert is_problem(reply, 503, "another mixopt")
            assert reply.headers["retry-after"] == "1"
            assert service.get("/health").code == 200
        assert service.post("/suggest", {"num": 1}).code == 200


def test_a_call_waits_for_the_process_that_holds_the_study(tmp_path):
    with served(a_study(tmp_path / "run")) as service, ThreadPoolExecutor(1) as pool:
        with RunDirectory(tmp_path / "run").locked():
            waiting = pool.submit(service.post, "/suggest", {"num": 1})
            assert service.get("/health").code == 200
            assert not waiting.done()
        assert waiting.result().code == 200


def test_what_another_process_tells_is_seen_at_once(tmp_path):
    with served(a_study(tmp_path / "run")) as service:
        run = service.post("/suggest", {"num": 1}).data["suggestions"][0]["run"]
        a_study(tmp_path / "run").tell(run, losses={"chat": 2.0})
        assert service.get("/status").data["best"]["run"] == run


def test_a_study_file_that_another_process_changed_is_not_changed_back(tmp_path):
    with served(a_study(tmp_path / "run")) as service:
        changed = a_study(tmp_path / "run", search={"budget": 7})
        changed.begin()
        before = ledger_bytes(changed)
        assert is_problem(service.post("/suggest", {}), 503, "the study file was changed", "restart mixopt serve")
    assert ledger_bytes(changed) == before


# --- wrong requests -----------------------------------------------------------------


WRONG = [
    ("/suggest", {"num": 0}, "num", "greater than or equal to 1, got 0"),
    ("/suggest", {"num": 2.5}, "num", "integer"),
    ("/suggest", {"number": 2}, "number", "unknown field; did you mean 'num'?"),
    ("/suggest", {"request": "with space"}, "request", "pattern"),
    ("/suggest", {"candidates": []}, "candidates", "at least 1 item"),
    ("/suggest", {"candidates": [{"run": "a", "fidelity": "large", "weights": {"law": 1}}]}, "candidates", "'law'"),
    ("/suggest", {"candidates": [{"run": "a", "fidelity": "huge", "weights": {"web": 1}}]}, "candidates", "'huge'"),
    ("/suggest", [], "body", "dictionary"),
    ("/tell", {}, "runs", "this field is required; add it"),
    ("/tell", {"runs": []}, "runs", "at least 1 item"),
    ("/tell", {"runs": [{"run": "a"}]}, "runs.0", "expected losses or scores, got no number"),
    ("/tell", {"runs": [{**OWN, "failed": True}]}, "runs.0", "a failed run has no losses"),
    ("/tell", {"runs": [{"run": "a", "losses": {"chat": 1}}]}, "runs.0", "this study suggested no run 'a'"),
    ("/tell", {"runs": [{**OWN, "run": "search-004"}]}, "runs.0", "this study suggested no such run"),
    ("/tell", {"runs": [{**OWN, "fidelity": "huge"}]}, "runs.0", "unknown rung 'huge'; the ladder has small, large"),
    ("/tell", {"runs": [{**OWN, "weights": {"law": 1}}]}, "runs.0", "unknown domain 'law'"),
    ("/tell", {"runs": [{**OWN, "weights": {"web": 7}}]}, "runs", "weights must sum to 1"),
    ("/tell", {"runs": [{**OWN, "weights": {"web": -1}}]}, "runs.0.weights.web", "greater than or equal to 0"),
    ("/tell", {"runs": [{**OWN, "losses": {"chat": "2"}}]}, "runs.0.losses.chat", "number"),
    ("/tell", {"runs": [{**OWN, "losses": {"chat": True}}]}, "runs.0.losses.chat", "number"),
    ("/tell", {"runs": [{**OWN, "run": "a\nb"}]}, "runs", "printable"),
    ("/tell", {"runs": [OWN, OWN]}, "runs", "every run must be there once"),
    ("/tell", {"runs": [{**OWN, "noise": {"loss/quiz": 0.1}}]}, "runs", "noise must be that of a column"),
    ("/tell", {"runs": [{**OWN, "losses": {"chat": None}}]}, "runs.0.losses.chat", "number"),
    ("/predict", {"mixtures": [HALF, {"web": 0.5}]}, "mixtures.1", "weights must sum to 1"),
    ("/predict", {"mixtures": [{"law": 1}]}, "mixtures.0", "unknown domain 'law'"),
    ("/predict", {"mixtures": [HALF], "fidelity": "huge"}, "fidelity", "unknown rung 'huge'"),
]


def test_wrong_requests_name_field_and_remedy_and_record_nothing(tmp_path):
    study = a_study(tmp_path / "run")
    with served(study) as service:
        before = ledger_bytes(study)
        for path, body, field, part in WRONG:
            reply = service.post(path, body)
            assert is_problem(reply, 422, part, field=field), (path, body)
            assert reply.data["remedy"], (path, body)
    assert ledger_bytes(study) == before


def test_errors_say_what_the_command_line_says():
    study = a_study()
    with served(a_study()) as service:
        for body, call in (
            ({"runs": [{"run": "a", "losses": {"chat": 1.0}}]}, lambda: study.tell("a", losses={"chat": 1.0})),
            ({"runs": [{**OWN, "fidelity": "huge"}]}, lambda: study.tell_reports([Report(**{**OWN, "fidelity": "huge"})])),
        ):  # fmt: skip
            with pytest.raises(ConfigError) as caught:
                call()
            assert service.post("/tell", body).data["error"] == str(caught.value)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400", "1" + "0" * 400])
def test_numbers_that_are_not_finite_are_refused(number):
    body = json.dumps({"runs": [{**OWN, "losses": {"chat": "HERE"}}]}).replace('"HERE"', number)
    with served(a_study()) as service:
        assert is_problem(service.send("/tell", body.encode()), 422, field="runs.0.losses.chat")
        assert service.get("/status").data["runs"]["done"] == 0


@pytest.mark.parametrize(
    "body",
    [b"{", b"", b"\xff\xfe", b'{"num": 1}x', b"[" * 100_000, b'{"num": ' + b"9" * 5_000 + b"}", b'"\\ud800"', b"null"],
    ids=["torn", "empty", "bytes", "rest", "deep", "long number", "surrogate", "null"],
)
def test_a_body_that_is_no_request_is_refused(body):
    with served(a_study()) as service:
        reply = service.send("/suggest", body)
        assert is_problem(reply, reply.code)
        assert reply.code in (400, 422)
        assert reply.data["remedy"]


def test_text_that_no_answer_can_hold_is_refused_and_shown_escaped():
    body = json.dumps({"runs": [{**OWN, "run": "\ud800"}]}).encode()
    with served(a_study()) as service:
        assert is_problem(service.send("/tell", body), 422)
        assert is_problem(service.post("/tell", {"runs": [{**OWN, "losses": {"\ud800": 1.0}}]}), 422)


def test_forms_are_refused_as_a_web_page_could_send_them_unasked():
    with served(a_study()) as service:
        for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
            reply = service.send("/suggest", b'{"num": 1}', headers={"Content-Type": kind})
            assert is_problem(reply, 415, "expected Content-Type: application/json")
        assert service.get("/status").data["runs"]["pending"] == 0


def test_unknown_paths_and_methods_point_to_the_openapi_document():
    with served(a_study()) as service:
        assert is_problem(service.get("/nothing"), 404, "/openapi.json")
        assert is_problem(service.send("/tell", method="DELETE"), 405, "no method DELETE")
        assert is_problem(service.get("/tell/"), 404)


def test_a_body_that_says_it_is_too_long_is_refused_before_it_is_sent():
    with served(a_study()) as service:
        for length in (str(MAX_BODY_BYTES + 1), "9" * 19):
            connection = http.client.HTTPConnection(*service.address)
            connection.putrequest("POST", "/tell")
            connection.putheader("Content-Type", "application/json")
            connection.putheader("Content-Length", length)
            connection.endheaders()
            answer = connection.getresponse()
            assert (answer.status, json.loads(answer.read())["remedy"]) == (413, "send it in parts")
            connection.close()


def test_a_body_that_grows_too_long_on_the_way_is_refused():
    def endless():
        for _ in range(MAX_BODY_BYTES // 2**20 + 1):
            yield b" " * 2**20

    with served(a_study()) as service:
        connection = http.client.HTTPConnection(*service.address)
        connection.request("POST", "/tell", endless(), {"Content-Type": "application/json"}, encode_chunked=True)
        answer = connection.getresponse()
        assert (answer.status, json.loads(answer.read())["remedy"]) == (413, "send it in parts")
        connection.close()


# --- who may call -------------------------------------------------------------------


def test_with_a_token_every_path_but_the_open_ones_needs_it():
    with served(a_study(), token=TOKEN) as service:
        paths = set(service.get("/openapi.json").data["paths"]) | {"/nothing"}
        for path in paths - set(OPEN_PATHS):
            for given in (
                "",
                TOKEN,
                f"Basic {TOKEN}",
                f"Bearer {TOKEN}x",
                "Bearer " + TOKEN[:-1],
                "Bearer ",
                "Bearer é",
            ):
                reply = service.send(path, b"{", headers={"Authorization": given.encode().decode("latin-1")})
                assert is_problem(reply, 401, "the token is missing or wrong"), (path, given)
                assert reply.headers["www-authenticate"] == "Bearer"
        for path in OPEN_PATHS:
            assert service.get(path, headers={"Authorization": ""}).code == 200
        assert service.get("/status").code == 200
        assert service.get("/status", headers={"Authorization": f"bearer {TOKEN}"}).code == 200


def test_the_open_paths_say_nothing_of_the_study():
    with served(a_study(domains=["secret-domain"], columns=["loss/secret-set"]), token=TOKEN) as service:
        shown = "".join(service.get(path, headers={"Authorization": ""}).text for path in OPEN_PATHS)
    assert "secret" not in shown
    assert TOKEN not in shown


def test_without_a_token_only_callers_of_this_machine_by_its_own_name_are_answered():
    with served(a_study()) as service:
        for host in ("localhost", "127.0.0.1:8765", "[::1]:80", "localhost:1"):
            assert service.get("/status", headers={"Host": host}).code == 200
        for host in ("evil.example", "evil.example:8765", "localhost.evil.example", "", "0.0.0.0", "[::2]"):
            assert is_problem(service.get("/status", headers={"Host": host}), 403), host


@pytest.mark.parametrize(
    ("host", "own"),
    [
        *((host, True) for host in ("127.0.0.1", "127.3.2.1", "::1", "localhost", "LOCALHOST")),
        *((host, False) for host in ("0.0.0.0", "::", "10.0.0.1", "example.org", "")),
    ],
)
def test_loopback_is_this_machine_alone(host, own):
    assert is_loopback(host) is own


def test_log_lines_hold_neither_token_nor_query(caplog):
    with caplog.at_level(logging.DEBUG), served(a_study(), token=TOKEN) as service:
        service.get("/status?token=abc")
        service.get("/status", headers={"Authorization": "Bearer wrong-token-of-somebody"})
        service.get("/a%0d%0aINFO forged".replace(" ", "%20"))
    lines = [record.getMessage() for record in caplog.records]
    requests = [line for line in lines if line.startswith("request done")]
    assert [re.sub(r" seconds=.*", "", line) for line in requests] == [
        "request done method=GET path=/status status=200",
        "request done method=GET path=/status status=401",
        "request done method=GET path=/a%0D%0AINFO%20forged status=404",
    ]
    assert not [line for line in lines if TOKEN in line or "wrong-token" in line or "abc" in line or "\n" in line]


# --- the OpenAPI document -----------------------------------------------------------


def document(**options):
    return build_app(a_study(), **options).openapi()


def test_every_field_and_parameter_is_described():
    found = document(token=TOKEN)
    schemas = found["components"]["schemas"]
    bare = [
        f"{name}.{key}"
        for name, schema in schemas.items()
        for key, value in schema.get("properties", {}).items()
        if not value.get("description")
    ]
    assert bare == []
    assert all(schema.get("description") for schema in schemas.values())
    calls = [call for path in found["paths"].values() for call in path.values()]
    assert all(call["summary"] and call["description"] for call in calls)
    assert all(parameter["description"] for call in calls for parameter in call.get("parameters", []))


def test_every_example_of_the_document_is_valid():
    models = [m for m in vars(messages).values() if isinstance(m, type) and issubclass(m, BaseModel)]
    examples = [(m, e) for m in models for e in (m.model_config.get("json_schema_extra") or {}).get("examples", [])]
    assert len(examples) >= 4
    for model, example in examples:
        assert model.model_validate(example)


def test_every_call_names_its_errors_in_the_one_form():
    for path, calls in document(token=TOKEN)["paths"].items():
        for call in calls.values():
            errors = {code: answer for code, answer in call["responses"].items() if code >= "400"}
            assert {"401", "409", "413", "422", "503"} <= set(errors) or path in OPEN_PATHS
            kinds = {answer["content"]["application/json"]["schema"]["$ref"] for answer in errors.values()}
            assert kinds <= {"#/components/schemas/Problem"}


def test_the_document_asks_for_a_token_exactly_if_one_is_needed():
    assert "securitySchemes" in document(token=TOKEN)["components"]
    assert "securitySchemes" not in document()["components"]


# --- the client ---------------------------------------------------------------------


def test_the_client_asks_and_tells_like_the_study_in_python():
    with served(a_study(), token=TOKEN) as service:
        client = Client(service.url, TOKEN)
        first, second, third = client.suggest(3)
        assert client.tell(first["run"], losses={"chat": 2.0})["told"] == [first["run"]]
        assert client.tell(first["run"], losses={"chat": 2.0})["already_known"] == [first["run"]]
        assert client.fail(second["run"])["failed"] == [second["run"]]
        assert client.tell_runs([OWN])["own"] == ["mine"]
        assert [run["run"] for run in client.runs("pending")] == client.status()["pending"] == [third["run"]]
        assert client.recommendation()["support"]
        assert client.predict([HALF], fidelity="large")[0]["weights"] == {**HALF, "books": 0}


def test_the_client_raises_the_errors_of_the_study_in_python():
    with served(a_study(), token=TOKEN) as service:
        client = Client(service.url, TOKEN)
        client.tell_runs([OWN])
        with pytest.raises(ConflictError, match="loss/chat was told as 2 before, now as 3"):
            client.tell_runs([{**OWN, "losses": {"chat": 3.0}}])
        with pytest.raises(ConfigError, match="this study suggested no run 'x'"):
            client.tell("x", losses={"chat": 1.0})
        with pytest.raises(ConfigError, match="the token is missing or wrong"):
            Client(service.url, "wrong").status()
        with pytest.raises(ConfigError, match="expected http://HOST:PORT"):
            Client("file:///etc/passwd")
    with pytest.raises(ResourceError, match="is mixopt serve running there"):
        Client(service.url, attempts=1).status()


def test_the_client_repeats_a_suggestion_that_got_no_answer_under_the_same_key(tmp_path):
    with served(a_study(tmp_path / "run"), patience_seconds=0) as service, ThreadPoolExecutor(1) as pool:
        with RunDirectory(tmp_path / "run").locked():
            waiting = pool.submit(Client(service.url, attempts=8).suggest, 2)
            with pytest.raises(ResourceError, match="another mixopt"):
                Client(service.url, attempts=1).suggest(2)
            assert not waiting.done()
        assert len(waiting.result()) == 2
    assert len(Study(tmp_path / "run").trials) == 2


# --- reports ------------------------------------------------------------------------


def test_a_report_of_a_suggested_run_takes_mixture_and_rung_from_the_suggestion():
    study = a_study()
    suggestion = study.ask(1)[0]
    with study.ledger() as ledger:
        table = as_table([Report(suggestion.run, {"chat": 2.0}, {"quiz": 0.5})], {t.id: t for t in ledger.trials})
    assert isinstance(table, RunsTable)
    assert (table.runs, table.fidelities, table.domains) == ((suggestion.run,), (suggestion.fidelity,), NAMES)
    assert table.weights[0].tolist() == suggestion.mixture.weights.tolist()
    assert {name: values.tolist() for name, values in table.columns.items()} == {
        "loss/chat": [2.0],
        "score/quiz": [0.5],
    }


def test_telling_nothing_is_refused():
    with pytest.raises(ConfigError, match="at least one run"):
        a_study().tell_reports([])


def test_a_repeated_request_in_python_returns_the_same_suggestions(tmp_path):
    first = a_study(tmp_path / "run").ask(2, request="k")
    assert ExternalStudy.open(tmp_path / "run").ask(2, request="k") == first
    with pytest.raises(ConflictError, match="request 'k'"):
        a_study(tmp_path / "run").ask(1, request="k")
