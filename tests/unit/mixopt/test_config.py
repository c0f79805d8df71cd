from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

import mixopt
from mixopt import ConfigError
from mixopt.config import StudyConfig, dump_config, load_config, validate

QUICKSTART = Path(__file__).parents[3] / "experiments" / "studies" / "quickstart.yaml"


def minimal(**fields):
    return {
        "name": "s",
        "domains": {"web": {"path": "web.txt"}, "code": {"path": "code.txt"}},
        "objective": {"expression": "loss/web"},
        **fields,
    }


def write(folder, text):
    path = folder / "study.yaml"
    path.write_text(text if isinstance(text, str) else yaml.safe_dump(text), encoding="utf-8")
    return path


def problem(folder, text):
    with pytest.raises(ConfigError) as caught:
        load_config(write(folder, text))
    return str(caught.value)


def sections(model=StudyConfig, seen=None):
    """Every pydantic model that a study file can hold."""
    seen = {} if seen is None else seen
    seen[model.__name__] = model
    for field in model.model_fields.values():
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())]
        for candidate in candidates:
            if isinstance(candidate, type) and issubclass(candidate, BaseModel) and candidate.__name__ not in seen:
                sections(candidate, seen)
    return seen


FIELDS = [(name, field) for name, model in sections().items() for field in model.model_fields]


def test_all_sections_are_found():
    assert {"StudyConfig", "DomainConfig", "SourceConfig", "GroupConfig", "KlConfig", "RungConfig", "RunConfig"} <= set(
        sections()
    )


@pytest.mark.parametrize(("model", "field"), FIELDS, ids=[f"{model}.{field}" for model, field in FIELDS])
def test_every_field_is_described(model, field):
    info = sections()[model].model_fields[field]
    is_section = isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel)
    assert info.description or (is_section and info.annotation.__doc__)


@pytest.mark.parametrize("model", sections())
def test_sections_are_frozen_and_forbid_unknown_fields(model):
    settings = sections()[model].model_config
    assert (settings["frozen"], settings["extra"]) == (True, "forbid")


def test_only_name_domains_and_objective_are_required():
    required = {name for name, field in StudyConfig.model_fields.items() if field.is_required()}
    assert required == {"name", "domains", "objective"}
    assert validate(minimal(), "here").experts_fidelity == "top"


def test_the_quickstart_loads():
    config = load_config(QUICKSTART)
    assert len(config.domains) == 8
    assert config.objective.unit == "bits_per_byte"
    assert all(domain.path.startswith("builtin:") for domain in config.domains.values())


def test_relative_paths_start_at_the_study_file(tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    study = minimal(
        domains={
            "web": {"path": "text/web.txt", "validation": {"path": "held.txt"}},
            "path": {"path": "/data/code.txt"},
        },
        eval_sets={"target": {"path": "../target.jsonl"}},
        tokenizer={"path": "tokenizer.json"},
    )
    config = load_config(write(tmp_path, study))
    assert config.domains["web"].path == str(tmp_path / "text" / "web.txt")
    assert config.domains["web"].validation.path == str(tmp_path / "held.txt")
    assert config.domains["path"].path == "/data/code.txt"
    assert Path(config.eval_sets["target"].path).resolve() == tmp_path.parent / "target.jsonl"
    assert config.tokenizer.path == str(tmp_path / "tokenizer.json")


def test_the_home_folder_is_understood(tmp_path):
    config = load_config(write(tmp_path, minimal(domains={"web": {"path": "~/web.txt"}})))
    assert config.domains["web"].path == str(Path.home() / "web.txt")


def test_the_resolved_file_means_the_same_anywhere(tmp_path):
    config = load_config(write(tmp_path, minimal()))
    (tmp_path / "elsewhere").mkdir()
    assert load_config(write(tmp_path / "elsewhere", dump_config(config))) == config


def test_the_order_of_the_domains_is_kept(tmp_path):
    path = write(
        tmp_path, "name: s\nobjective: {expression: loss/z}\ndomains:\n  z: {path: z}\n  a: {path: a}\n  m: {path: m}\n"
    )
    assert list(load_config(path).domains) == ["z", "a", "m"]


# --- what a person mistypes ---------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sed": 1}, "sed: unknown field; did you mean 'seed'?"),
        ({"search": {"budjet": 3}}, "search.budjet: unknown field; did you mean 'budget'?"),
        ({"ladder": [{"name": "top", "tokns": 9, "tokens": 9}]}, "ladder.0.tokns: unknown field; did you mean 'tokens'?"),
        ({"domains": {"web": {"path": "x", "txt": "y"}}}, "domains.web.txt: unknown field; did you mean 'text'?"),
        ({"domains": {"text": {"path": "x", "txt": "y"}}}, "domains.text.txt: unknown field; did you mean 'text'?"),
        ({"domains": {"web": {"path": "x", "validation": {"pth": "y", "path": "z"}}}}, "unknown field; did you mean 'path'?"),
        ({"constraints": {"kl": {"wight": 1}}}, "constraints.kl.wight: unknown field; did you mean 'weight'?"),
        ({"run": {"zzz": 1}}, "run.zzz: unknown field; known fields are executor, workers"),
        ({"domains": {}}, "domains: Dictionary should have at least 1 item"),
        ({"domains": {"web": {}}}, "domains.web: give exactly one of path and hub"),
        ({"domains": {"web": {"path": "x", "hub": "y"}}}, "domains.web: give exactly one of path and hub"),
        ({"domains": {"a b": {"path": "x"}}}, "domain name 'a b' must start with a letter or digit"),
        ({"name": "a/b"}, "study name 'a/b'"),
        ({"eval_sets": {"web": {"path": "x"}}}, "eval_sets.web: a domain has this name"),
        ({"experts": {"fidelity": "tpo"}}, "experts.fidelity: unknown rung 'tpo' (did you mean 'top'?); the ladder has low, mid, top"),
        ({"search": {"optimizer": "magic"}}, "search.optimizer: Input should be 'mfbo', 'random', 'sobol' or 'listed', got 'magic'"),
        ({"search": {"budget": -1}}, "search.budget: Input should be greater than or equal to 0, got -1"),
        ({"search": {"budget": float("inf")}}, "search.budget"),
        ({"constraints": {"bounds": {"web": [0.5, 1.5]}}}, "constraints.bounds.web.1: Input should be less than or equal to 1, got 1.5"),
        ({"seed": "zero"}, "seed: Input should be a valid integer"),
    ],
)  # fmt: skip
def test_the_message_names_the_field_and_the_remedy(tmp_path, fields, message):
    assert message in problem(tmp_path, minimal(**fields))


def test_missing_fields_are_named(tmp_path):
    assert "objective: this field is required; add it" in problem(
        tmp_path, {"name": "s", "domains": {"a": {"path": "x"}}}
    )


def test_all_problems_are_told_at_once(tmp_path):
    text = problem(tmp_path, minimal(sed=1, search={"budget": -1}))
    assert text.count("\n  - ") == 2


def test_a_domain_given_twice_is_refused_not_merged(tmp_path):
    text = "name: s\ndomains:\n  web: {path: a}\n  web: {path: b}\nobjective: {expression: loss/web}\n"
    assert "line 4: 'web' is given twice; names must be unique, rename one" in problem(tmp_path, text)


def test_a_file_with_a_field_given_twice_is_named(tmp_path):
    assert "study.yaml" in problem(tmp_path, "name: s\nname: t\n")


@pytest.mark.parametrize("text", ["name: [", "a: b: c", "\tname: x", "name: 'x", "name: \x07"])
def test_broken_yaml_is_named_with_its_place(tmp_path, text):
    message = problem(tmp_path, text)
    assert "study.yaml is no valid YAML" in message
    assert "line 1" in message or "position" in message


def test_a_template_that_was_not_filled_in_is_broken_yaml_too(tmp_path):
    assert "study.yaml" in problem(tmp_path, "name: {{ study }}\n")


@pytest.mark.parametrize("text", ["", "just words", "- a\n- b\n", "# nothing\n"])
def test_a_file_that_is_no_mapping_is_named(tmp_path, text):
    assert "study.yaml: expected a mapping of fields such as name, domains and objective" in problem(tmp_path, text)


def test_a_missing_file_says_how_to_write_one(tmp_path):
    with pytest.raises(ConfigError, match=r"no study file at .*none\.yaml; write one with: mixopt init FOLDER"):
        load_config(tmp_path / "none.yaml")


def test_a_file_that_is_no_text_is_named(tmp_path):
    (tmp_path / "study.yaml").write_bytes(b"\xff\xfe\x00name")
    with pytest.raises(ConfigError, match="cannot read the study file"):
        load_config(tmp_path / "study.yaml")


def test_every_public_name_can_be_imported():
    assert [name for name in mixopt.__all__ if not hasattr(mixopt, name)] == []
    assert mixopt.__all__ == sorted(mixopt.__all__)
