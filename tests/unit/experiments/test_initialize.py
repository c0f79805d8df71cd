import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mixopt import ConfigError
from mixopt.config import load_config
from mixopt.experiments.initialize import find_domains, study_yaml


def write_jsonl(path, **row):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    return path


def write_parquet(path, **columns):
    pq.write_table(pa.table(columns), path)
    return path


def study_of(folder, name="mine"):
    """The study file for a folder, loaded as `mixopt run` would."""
    path = folder / "study.yaml"
    path.write_text(study_yaml(name, find_domains(folder), folder), encoding="utf-8")
    return load_config(path)


def test_every_file_and_folder_of_text_is_a_domain(tmp_path):
    write_jsonl(tmp_path / "web.jsonl", text="a")
    write_jsonl(tmp_path / "books" / "deep" / "one.jsonl", text="a")
    (tmp_path / "notes.txt").write_text("words")
    write_parquet(tmp_path / "code.parquet", content=["x"])
    (tmp_path / "picture.png").write_bytes(b"")
    (tmp_path / ".hidden.txt").write_text("words")
    (tmp_path / "empty").mkdir()
    assert [domain.name for domain in find_domains(tmp_path)] == ["books", "code", "notes", "web"]


def test_sizes_add_up_over_a_folder(tmp_path):
    (tmp_path / "a").mkdir()
    for i in range(3):
        (tmp_path / "a" / f"{i}.txt").write_text("x" * 100)
    assert find_domains(tmp_path)[0].num_bytes == 300


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({"text": "a", "url": "long long long"}, "text"),
        ({"content": "a", "url": "long long long"}, "content"),
        ({"id": "1", "story": "a long story", "n": 3}, "story"),
    ],
)
def test_the_text_column_is_the_usual_one_or_the_longest(tmp_path, row, column):
    write_jsonl(tmp_path / "web.jsonl", **row)
    assert find_domains(tmp_path)[0].text == column


def test_the_text_column_of_a_parquet_file_holds_strings(tmp_path):
    write_parquet(tmp_path / "web.parquet", number=[1, 2], body=["a", "b"])
    assert find_domains(tmp_path)[0].text == "body"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("web.jsonl", b'{"n": 1}\n', "has no column of text; add one or remove the file"),
        ("web.jsonl", b"[1, 2]\n", "expected one JSON object per row"),
        ("web.jsonl", b'{"text": "torn', "cannot read .*repair or remove it"),
        ("web.jsonl", b"\xff\xfe", "cannot read .*repair or remove it"),
        ("web.parquet", b"no parquet", "cannot read .*repair or remove it"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        find_domains(tmp_path)
    assert name in str(caught.value)


def test_two_files_of_one_name_are_refused(tmp_path):
    (tmp_path / "web.txt").write_text("a")
    write_jsonl(tmp_path / "web.jsonl", text="a")
    with pytest.raises(ConfigError, match="would both be the domain 'web'; rename one"):
        find_domains(tmp_path)


def test_a_folder_without_text_and_a_missing_folder_say_what_to_give(tmp_path):
    with pytest.raises(ConfigError, match="holds no txt, jsonl, json or parquet file"):
        find_domains(tmp_path)
    with pytest.raises(ConfigError, match=r"no folder at .*; give a folder"):
        find_domains(tmp_path / "none")


def test_the_study_file_can_be_loaded_and_finds_the_text(tmp_path):
    write_jsonl(tmp_path / "web.jsonl", body="a", url="")
    (tmp_path / "notes.txt").write_text("words")
    config = study_of(tmp_path)
    assert {name: (d.path, d.text) for name, d in config.domains.items()} == {
        "notes": (str(tmp_path / "notes.txt"), "text"),
        "web": (str(tmp_path / "web.jsonl"), "body"),
    }
    assert config.objective.expression == "mean(loss/notes, loss/web)"


@pytest.mark.parametrize(
    "name", ["2024.txt", "no.txt", "null.txt", "1e3.txt", "a b.txt", "a#b.txt", "_old.txt", "données.txt", "文.txt"]
)
def test_every_file_name_gives_a_domain_that_can_be_loaded(tmp_path, name):
    (tmp_path / name).write_text("words")
    (tmp_path / "web.txt").write_text("words")
    config = study_of(tmp_path)
    assert str(tmp_path / name) in {domain.path for domain in config.domains.values()}
    assert all(f"loss/{domain}" in config.objective.expression for domain in config.domains)


@pytest.mark.parametrize("column", ["my text", "a: b", 'quo"te', "#1"])
def test_unusual_columns_and_paths_are_quoted(tmp_path, column):
    folder = tmp_path / "it's: a # folder"
    write_jsonl(folder / "web.jsonl", **{column: "a"})
    config = study_of(folder)
    assert (config.domains["web"].text, config.domains["web"].path) == (column, str(folder / "web.jsonl"))


def test_text_outside_the_study_folder_is_found_too(tmp_path):
    write_jsonl(tmp_path / "data" / "web.jsonl", text="a")
    (tmp_path / "studies").mkdir()
    path = tmp_path / "studies" / "study.yaml"
    path.write_text(study_yaml("mine", find_domains(tmp_path / "data"), path.parent))
    assert load_config(path).domains["web"].path == str(tmp_path / "data" / "web.jsonl")
