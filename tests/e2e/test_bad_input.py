"""Wrong input: the right exit code, one message that names place and remedy, nothing half-written."""

import json
import socket

import pytest
import yaml

from mixopt.experiments import build
from mixopt.study import Study
from tests.e2e.command_line import mixopt, mixopt_process, small_study, write_text


def edit(path, **fields):
    """Change fields of a study file, given as domain__web__path=... ."""
    data = yaml.safe_load(path.read_text())
    for key, value in fields.items():
        *parents, last = key.split("__")
        place = data
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path


def messages(answer):
    """What was said besides progress: the lines that begin in the first column."""
    told = [line for line in answer.err.splitlines() if line and not line.startswith(" ")]
    return [line for line in told if line.startswith("error: ") or "error" in line.lower() or "warning" in line.lower()]


def refused(answer, folder, code, *parts):
    """The command ended with this code and one message that holds all parts; no ledger was begun."""
    assert answer.code == code, answer.err
    assert "Traceback" not in answer.err
    assert len(messages(answer)) == 1, answer.err
    assert [part for part in parts if part not in answer.err] == [], answer.err
    assert answer.out == ""
    assert list(folder.rglob("study.jsonl")) == []
    assert list(folder.rglob("mixture.yaml")) == []


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# --- text ---------------------------------------------------------------------


def test_a_missing_domain_file_is_named(tmp_path):
    study = edit(small_study(tmp_path), domains__web__path="nowhere.jsonl")
    refused(mixopt("run", study), tmp_path, 2, "domains.web.path", "nowhere.jsonl", "correct the path")


def test_a_missing_validation_file_is_named(tmp_path):
    study = edit(small_study(tmp_path), domains__web__validation={"path": "nowhere.txt"})
    refused(mixopt("check", study), tmp_path, 2, "domains.web.validation.path", "nowhere.txt")


def test_an_empty_file_is_named(tmp_path):
    study = small_study(tmp_path)
    (tmp_path / "text" / "code.jsonl").write_text("")
    refused(mixopt("run", study), tmp_path, 2, "domains.code.path", "code.jsonl is empty; fill or remove it")


def test_a_file_of_empty_documents_is_named(tmp_path):
    study = small_study(tmp_path)
    (tmp_path / "text" / "code.jsonl").write_text('{"text": ""}\n{"text": "  "}\n')
    refused(mixopt("run", study), tmp_path, 2, "domains.code", "holds no document with text; fill it or drop it")


def test_a_missing_text_column_names_those_that_are_there(tmp_path):
    study = edit(small_study(tmp_path), domains__web__text="body")
    refused(mixopt("run", study), tmp_path, 2, "domains.web.text: no column 'body'", "it has text")


def test_a_column_that_is_no_text_is_named(tmp_path):
    study = small_study(tmp_path)
    (tmp_path / "text" / "web.jsonl").write_text('{"text": 1}\n{"text": 2}\n')
    refused(mixopt("run", study), tmp_path, 2, "domains.web.text: column 'text'", "holds int, expected text")


def test_a_domain_shorter_than_one_sequence_is_named(tmp_path):
    study = edit(small_study(tmp_path), domains__web__holdout=0.45)
    (tmp_path / "text" / "web.jsonl").write_text("".join(json.dumps({"text": f"w{i}"}) + "\n" for i in range(12)))
    refused(
        mixopt("run", study),
        tmp_path,
        2,
        "domains.web:",
        "fewer than one sequence (proxy.sequence_length 32)",
        "add text",
    )


def test_a_domain_of_one_document_says_what_to_hold_out(tmp_path):
    study = small_study(tmp_path)
    (tmp_path / "text" / "web.jsonl").write_text(json.dumps({"text": "a word and another " * 200}) + "\n")
    answer = mixopt("run", study)
    refused(answer, tmp_path, 2, "domains.web")
    assert "held out" in answer.err or "no document" in answer.err


@pytest.mark.parametrize("content", [b'{"text": "good"}\n{"text": "torn', b"no json at all\n"])
def test_a_corrupted_jsonl_file_is_named(tmp_path, content):
    study = small_study(tmp_path)
    (tmp_path / "text" / "web.jsonl").write_bytes(content)
    refused(mixopt("run", study), tmp_path, 2, "domains.web", "cannot read", "web.jsonl", "repair or replace it")


def test_a_corrupted_parquet_file_is_named(tmp_path):
    study = edit(small_study(tmp_path), domains__web__path="text/web.parquet")
    (tmp_path / "text" / "web.parquet").write_bytes(b"PAR1 this is no parquet PAR1")
    refused(mixopt("run", study), tmp_path, 2, "domains.web", "cannot read", "web.parquet", "repair or replace it")


def test_an_unknown_kind_of_file_is_named(tmp_path):
    study = edit(small_study(tmp_path), domains__web__path="text/web.docx")
    (tmp_path / "text" / "web.docx").write_bytes(b"PK")
    refused(
        mixopt("run", study),
        tmp_path,
        2,
        "domains.web.path",
        "web.docx is no txt, jsonl, json or parquet file; convert it",
    )


def test_a_folder_of_mixed_kinds_is_named(tmp_path):
    study = edit(small_study(tmp_path), domains__web__path="text")
    (tmp_path / "text" / "more.txt").write_text("words")
    refused(mixopt("run", study), tmp_path, 2, "domains.web.path", "mixes kinds of files")


def test_a_file_whose_name_looks_like_a_pattern_is_found(tmp_path):
    study = edit(small_study(tmp_path), domains__web__path="text/web [1].jsonl")
    (tmp_path / "text" / "web.jsonl").rename(tmp_path / "text" / "web [1].jsonl")
    header, _ = build.prepare(build.locate(study))
    assert header.domains[0].num_docs > 0


def test_an_unknown_builtin_text_is_named(tmp_path):
    study = edit(small_study(tmp_path), domains__web__path="builtin:train/wbe.parquet")
    refused(mixopt("run", study), tmp_path, 2, "domains.web.path", "wbe.parquet")


# --- the study file -----------------------------------------------------------


def test_duplicate_domain_names_are_refused(tmp_path):
    study = small_study(tmp_path)
    study.write_text(study.read_text().replace("  code:\n", "  web:\n"))
    refused(mixopt("check", study), tmp_path, 2, "'web' is given twice; names must be unique, rename one")


def test_an_unknown_field_is_named_with_the_nearest_one(tmp_path):
    study = edit(small_study(tmp_path), search__budjet=3)
    refused(mixopt("run", study), tmp_path, 2, "search.budjet: unknown field; did you mean 'budget'?")


def test_broken_yaml_is_named(tmp_path):
    (tmp_path / "study.yaml").write_text("name: [")
    refused(mixopt("run", "study.yaml"), tmp_path, 2, "study.yaml is no valid YAML", "line")


def test_a_missing_study_file_says_how_to_write_one(tmp_path):
    refused(mixopt("run", "none.yaml"), tmp_path, 2, "no study file at none.yaml; write one with: mixopt init FOLDER")


def test_a_folder_that_is_no_run_directory_is_named(tmp_path):
    refused(mixopt("status", tmp_path), tmp_path, 2, "is no run directory")


def test_an_unknown_objective_column_names_the_columns(tmp_path):
    study = edit(small_study(tmp_path), objective__expression="mean(loss/webb)")
    refused(
        mixopt("run", study),
        tmp_path,
        2,
        "objective.expression: unknown column 'loss/webb' (did you mean 'loss/web'?); available are loss/web, loss/code",
    )


@pytest.mark.parametrize(
    ("constraints", "parts"),
    [
        (
            {"bounds": {"web": [0, 0.3], "code": [0, 0.3]}},
            ["the upper bounds", "sum to 0.6, less than 1", "raise bounds"],
        ),
        ({"bounds": {"wbe": [0, 0.3]}}, ["constraints.bounds: unknown domain 'wbe'", "web, code"]),
        ({"target_tokens": 10**9, "max_epochs": 1}, ["epoch caps included", "lower target_tokens"]),
        (
            {"groups": [{"domains": ["web"], "min": 0.9}, {"domains": ["code"], "min": 0.9}]},
            ["no mixture satisfies", "0.9 <= web", "relax one"],
        ),
    ],
)
def test_unsatisfiable_constraints_are_named(tmp_path, constraints, parts):
    study = edit(small_study(tmp_path), constraints=constraints)
    refused(mixopt("run", study), tmp_path, 2, *parts)


def test_a_ladder_out_of_order_is_refused(tmp_path):
    study = edit(small_study(tmp_path), ladder=[{"name": "top", "tokens": 512}, {"name": "low", "tokens": 256}])
    refused(mixopt("run", study), tmp_path, 2, "ladder: rungs must become more expensive", "reorder them")


def test_a_baseline_off_the_simplex_is_named(tmp_path):
    study = edit(small_study(tmp_path), validation__mixtures={"mine": {"web": 0.5}})
    refused(mixopt("run", study), tmp_path, 2, "validation.mixtures.mine", "sum to 1")


@pytest.mark.parametrize(("field", "value"), [("top_k", 9), ("head_dim", 7), ("width", 33), ("kv_heads", 3)])
def test_an_impossible_model_shape_is_named(tmp_path, field, value):
    study = edit(small_study(tmp_path), **{f"proxy__{field}": value})
    refused(mixopt("run", study), tmp_path, 2, "proxy.", field)


def test_an_unlimited_budget_is_refused(tmp_path):
    study = edit(small_study(tmp_path), search__budget=float("inf"))
    refused(mixopt("run", study), tmp_path, 2, "search.budget")


def test_a_missing_tokenizer_file_is_named(tmp_path):
    study = edit(small_study(tmp_path), tokenizer__path="tokenizer.json")
    refused(mixopt("run", study), tmp_path, 2, "tokenizer.path: no file at", "drop the field to train a tokenizer")


# --- flags and verbs ----------------------------------------------------------


def test_an_unknown_executor_is_named(tmp_path):
    refused(
        mixopt("run", small_study(tmp_path), "--executor", "slurm"),
        tmp_path,
        2,
        "--executor: expected ray or serial, got 'slurm'",
    )


@pytest.mark.parametrize(
    "words",
    [["rnu", "study.yaml"], ["run"], ["run", "study.yaml", "--wrokers", "2"], ["run", "study.yaml", "--workers", "0"]],
)
def test_wrong_use_is_code_two_with_a_hint(tmp_path, words):
    answer = mixopt(*words)
    assert answer.code == 2
    assert "Usage" in answer.err
    assert "Error" in answer.err
    assert list(tmp_path.iterdir()) == []


def test_a_run_directory_that_is_a_file_is_named(tmp_path):
    (tmp_path / "taken").write_text("a file of the user")
    answer = mixopt("run", small_study(tmp_path), "--dir", "taken")
    refused(answer, tmp_path, answer.code, "taken")
    assert answer.code in (1, 2)


# --- init ---------------------------------------------------------------------


def test_init_on_an_empty_folder_says_what_to_put_there(tmp_path):
    (tmp_path / "text").mkdir()
    refused(
        mixopt("init", "text"),
        tmp_path,
        2,
        "text holds no txt, jsonl, json or parquet file; put one file or sub-folder per domain there",
    )
    assert not (tmp_path / "study.yaml").exists()


def test_init_does_not_overwrite(tmp_path):
    study = small_study(tmp_path)
    before = study.read_text()
    refused(mixopt("init", "text"), tmp_path, 2, "study.yaml is there already; choose another --out or add --force")
    assert study.read_text() == before


def test_init_names_a_corrupted_file(tmp_path):
    write_text(tmp_path / "text")
    (tmp_path / "text" / "web.jsonl").write_text('{"text": "torn')
    refused(mixopt("init", "text"), tmp_path, 2, "cannot read text/web.jsonl", "repair or remove it")
    assert not (tmp_path / "study.yaml").exists()


@pytest.mark.parametrize("folder", ["my data (1)", "texte-français"])
def test_init_leaves_no_study_file_that_cannot_be_read(tmp_path, folder):
    write_text(tmp_path / folder)
    first, second = mixopt("init", folder), mixopt("init", folder, "--out", "other.yaml")
    assert first.code == second.code
    assert (tmp_path / "study.yaml").exists() == (first.code == 0), first.err


# --- a study that was begun ---------------------------------------------------


def begun(folder):
    """A run directory whose ledger holds a header, as `run` leaves it when interrupted at once."""
    location = build.locate(small_study(folder))
    header, _ = build.prepare(location)
    Study(location.directory).begin(header)
    build.save_config(location)
    return location.directory


def told(answer, code, *parts):
    assert answer.code == code, answer.err
    assert len(messages(answer)) == 1, answer.err
    assert [part for part in parts if part not in answer.err] == [], answer.err


def test_changed_text_is_listed_and_refused_before_any_work(tmp_path):
    directory = begun(tmp_path)
    with (tmp_path / "text" / "web.jsonl").open("a") as file:
        file.write(json.dumps({"text": "a further document " * 9}) + "\n")
    before = (directory / "study.jsonl").read_bytes()
    told(mixopt("run", "study.yaml"), 2, "domain web changed (", "--accept-changes", "--dir")
    assert (directory / "study.jsonl").read_bytes() == before


def test_a_removed_domain_is_listed(tmp_path):
    begun(tmp_path)
    study = edit(
        tmp_path / "study.yaml",
        objective__expression="loss/code",
        domains={"code": {"path": "text/code.jsonl", "holdout": 0.2}},
    )
    told(mixopt("run", study), 2, "domain web was removed", "evaluation set web was removed", "--accept-changes")


def test_another_vocabulary_is_refused_because_the_tokenizer_is_frozen(tmp_path):
    begun(tmp_path)
    told(
        mixopt("run", edit(tmp_path / "study.yaml", tokenizer__vocab_size=310)),
        2,
        "tokenizer",
        "frozen at the first run",
        "--dir",
    )


@pytest.mark.parametrize(
    ("mixture", "parts"),
    [
        ("web=0.5,code=0.4", ["sum to 1", "got 0.9"]),
        ("web=0.5,cod=0.5", ["unknown domain 'cod' (did you mean 'code'?); the study's domains are web, code"]),
        ("web", ["expected DOMAIN=WEIGHT with a number, got 'web'"]),
    ],
)
def test_a_mixture_that_cannot_be_predicted_is_named(tmp_path, mixture, parts):
    told(mixopt("predict", begun(tmp_path), "--mixture", mixture), 2, *parts)


def test_an_unknown_rung_to_predict_is_named(tmp_path):
    told(
        mixopt("predict", begun(tmp_path), "--mixture", "web=1", "--fidelity", "tpo"),
        2,
        "unknown rung 'tpo' (did you mean 'top'?); the ladder has low, top",
    )


@pytest.mark.parametrize("verb", ["status", "report", "sync"])
def test_a_study_that_was_not_begun_says_how_to_begin(tmp_path, verb):
    refused(mixopt(verb, small_study(tmp_path)), tmp_path, 1, "holds no study yet; start it with: mixopt run")


def test_a_damaged_ledger_is_named_with_its_line(tmp_path):
    directory = begun(tmp_path)
    ledger = directory / "study.jsonl"
    ledger.write_bytes(ledger.read_bytes().replace(b'"seed": 0', b'"seed": 1'))
    told(mixopt("status", directory), 1, "study.jsonl, line 1: the checksum does not match; restore a backup")


# --- what does not answer -----------------------------------------------------


def closed_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@pytest.mark.mlflow
def test_a_tracking_server_that_does_not_answer_is_named_before_any_training(tmp_path):
    uri = f"http://127.0.0.1:{closed_port()}"
    refused(mixopt("run", small_study(tmp_path), "--tracking-uri", uri), tmp_path, 1, uri, "--tracking-uri")


def test_a_tracking_uri_of_an_unknown_kind_is_named(tmp_path):
    refused(mixopt("run", small_study(tmp_path), "--tracking-uri", "ftp://host/x"), tmp_path, 2, "tracking", "ftp")


def test_a_ray_cluster_that_does_not_answer_is_named_before_any_training(tmp_path):
    # Seven seconds here, most of them imports; left to itself, Ray would wait for minutes.
    address = f"127.0.0.1:{closed_port()}"
    words = ["run", small_study(tmp_path), "--executor", "ray", "--address", address]
    refused(mixopt_process(*words, cwd=tmp_path, seconds=30), tmp_path, 1, "run.address", address, "drop the address")


# --- the same through a real process ------------------------------------------


def test_a_real_process_ends_with_code_two_and_one_line(tmp_path):
    study = edit(small_study(tmp_path), search__budjet=3)
    answer = mixopt_process("run", study, cwd=tmp_path)
    refused(answer, tmp_path, 2, "search.budjet: unknown field; did you mean 'budget'?")
    assert answer.err.startswith("error: ")
    assert answer.err.count("\n") == 1


def test_a_real_process_says_what_is_wrong_with_a_file_once(tmp_path):
    study = small_study(tmp_path)
    (tmp_path / "text" / "web.jsonl").write_text('{"text": "good"}\n{"text": "torn')
    refused(mixopt_process("run", study, cwd=tmp_path), tmp_path, 2, "domains.web: cannot read")


def test_a_real_process_with_an_unknown_verb_ends_with_code_two(tmp_path):
    answer = mixopt_process("rnu", cwd=tmp_path)
    assert (answer.code, answer.out) == (2, "")
    assert "No such command 'rnu'" in answer.err
