"""What verbs print with `--json` is what docs/json.md says."""

import importlib.util
from pathlib import Path

import jsonschema
import pytest
import yaml

from mixopt.experiments.cli import app
from tests.e2e.command_line import mixopt, small_study, write_text
from tests.unit.experiments.finished_study import finished_study, started_study
from tests.unit.experiments.test_cli import run_directory

DOCS = Path(__file__).parents[3] / "docs"

pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="the docs are not part of an installed package")


def schemas():
    spec = importlib.util.spec_from_file_location("make_json", DOCS / "make_json.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check(verb, *words):
    """Run a verb and hold its answer against the schema."""
    answer = mixopt(verb, *words, "--json")
    assert answer.out, answer.err
    jsonschema.validate(answer.data, schemas().SCHEMAS[verb][1], cls=jsonschema.Draft202012Validator)
    return answer.data


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_the_page_is_what_its_generator_prints():
    remedy = "run: python docs/make_json.py > docs/json.md"
    assert schemas().page() == (DOCS / "json.md").read_text(encoding="utf-8"), remedy


def test_every_verb_has_a_valid_schema():
    assert set(schemas().SCHEMAS) == {command.name for command in app.registered_commands}
    for _, schema in schemas().SCHEMAS.values():
        jsonschema.Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize("make", [finished_study, started_study])
def test_verbs_on_a_study_print_what_the_page_says(tmp_path, make):
    directory = run_directory(tmp_path, make)
    check("status", directory)
    check("sync", directory)


def test_reading_a_finished_study_prints_what_the_page_says(tmp_path):
    directory = run_directory(tmp_path)
    check("report", directory)
    check("predict", directory, "--mixture", "web=1")


def test_an_export_prints_what_the_page_says(tmp_path):
    directory = run_directory(tmp_path)
    check("export", directory, "--format", "megatron")
    check("export", directory, "--format", "yaml", "--out", "mixture.yaml")


def test_a_proposal_prints_what_the_page_says(tmp_path):
    write_text(tmp_path / "text")
    found = check("init", "text")
    assert found["estimated"]["process_seconds"] > 0
    (tmp_path / "short").mkdir()
    (tmp_path / "short" / "a.txt").write_text("too short to time")
    assert check("init", "short", "--out", "short.yaml")["estimated"]["process_seconds"] is None


def test_verbs_without_a_study_print_what_the_page_says():
    check("doctor")
    check("bench", "sizes")


def test_asking_and_telling_print_what_the_page_says(tmp_path):
    study = {
        "name": "own", "trainer": "external", "domains": ["web", "code"], "ladder": {"small": 1, "large": 10},
        "objective": "mean(loss/*)", "search": {"optimizer": "random"},
    }  # fmt: skip
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    asked = check("suggest", "study.yaml", "-n", "2")["suggestions"]
    rows = [
        f"{s['run']},{s['fidelity']},{s['weights']['web']!r},{s['weights']['code']!r},{3 + i}"
        for i, s in enumerate(asked)
    ]
    (tmp_path / "runs.csv").write_text("\n".join(["run,fidelity,weight/web,weight/code,loss/chat", *rows]) + "\n")
    check("tell", "study.yaml", "--runs", "runs.csv")
    check("status", "study.yaml")
    check("convert", "runs.csv", "--out", "joined.csv")
    check("predict", "--runs", "runs.csv", "--mixture", "web=0.5,code=0.5")


@pytest.mark.slow
def test_a_study_from_check_to_run_prints_what_the_page_says(tmp_path):
    small_study(tmp_path)
    check("check", "study.yaml")
    check("run", "study.yaml")
    assert check("run", "study.yaml")["already_complete"]
    check("check", "study.yaml")
    check("export-model", "study.yaml", "--trial", "search-000", "--out", "model")
