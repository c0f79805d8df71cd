import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mixopt import ConfigError
from mixopt.experiments.initialize import find_domains
from mixopt.experiments.proposing import MOST_EPOCHS, draft_for
from mixopt.experiments.survey import SAMPLE_BYTES, Surveyed, survey, warnings

SENTENCE = "The cat sat on the mat and looked at the rain. "


def write_domain(folder, kind, num_documents, repeats=4):
    """A file of equal documents; returns the bytes of their text."""
    text = SENTENCE * repeats
    path = folder / f"web{kind}"
    if kind == ".parquet":
        pq.write_table(pa.table({"text": [text] * num_documents}), path)
    elif kind == ".txt":
        path.write_text((text + "\n") * num_documents)
    elif kind == ".json":
        path.write_text(json.dumps([{"text": text}] * num_documents))
    else:
        path.write_text((json.dumps({"text": text, "url": "x" * 50}) + "\n") * num_documents)
    return num_documents * len(text)


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".parquet"])
@pytest.mark.parametrize("num_documents", [5, 5000])
def test_documents_and_bytes_are_estimated_from_a_part(tmp_path, kind, num_documents):
    num_bytes = write_domain(tmp_path, kind, num_documents)
    found = survey(find_domains(tmp_path)[0])
    # Rows are equal, so only the last partly read row can put the estimate off.
    assert found.num_documents == pytest.approx(num_documents, rel=0.01)
    assert found.text_bytes == pytest.approx(num_bytes, rel=0.01)


def test_text_files_count_their_bytes(tmp_path):
    num_bytes = write_domain(tmp_path, ".txt", 5000)
    assert survey(find_domains(tmp_path)[0]).text_bytes == pytest.approx(num_bytes, rel=0.02)


def test_no_more_than_the_sample_is_kept_of_a_large_domain(tmp_path):
    write_domain(tmp_path, ".jsonl", 20_000)
    sample = survey(find_domains(tmp_path)[0]).sample
    assert sum(map(len, sample)) < 1.1 * SAMPLE_BYTES


def test_files_that_are_not_opened_count_like_those_that_are(tmp_path):
    (tmp_path / "web").mkdir()
    for i in range(30):
        (tmp_path / "web" / f"{i}.jsonl").write_text((json.dumps({"text": SENTENCE}) + "\n") * 10)
    assert survey(find_domains(tmp_path)[0]).num_documents == pytest.approx(300)


def test_a_cut_character_at_the_end_of_a_sample_is_no_error(tmp_path):
    (tmp_path / "web.txt").write_text("é" * SAMPLE_BYTES)
    assert survey(find_domains(tmp_path)[0]).text_bytes == pytest.approx(2 * SAMPLE_BYTES, rel=0.01)


@pytest.mark.parametrize(
    ("name", "content"),
    [("b.jsonl", b'{"text": "a"}\nno json\n'), ("b.jsonl", b'{"text": "\xff"}\n'), ("b.jsonl", b'{"body": "a"}\n')],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path, name, content):
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "a.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "web" / name).write_bytes(content)
    with pytest.raises(ConfigError, match=r"web/b\.jsonl.*remove it"):
        survey(find_domains(tmp_path)[0])


def test_text_that_is_no_unicode_is_named(tmp_path):
    (tmp_path / "web.txt").write_bytes(b"\xff\xfe words")
    with pytest.raises(ConfigError, match=r"cannot read .*web\.txt"):
        survey(find_domains(tmp_path)[0])


def sized(tmp_path, sizes, num_documents=1000.0):
    for name in sizes:
        (tmp_path / f"{name}.txt").write_text("words")
    return [
        Surveyed(found, num_documents, 3.0 * sizes[found.name], sizes[found.name], ("words",))
        for found in find_domains(tmp_path)
    ]


def test_plenty_of_text_gets_the_usual_ladder_without_warning(tmp_path):
    domains = sized(tmp_path, {"web": 1e6, "code": 2e6})
    draft = draft_for(domains)
    assert (draft.top_tokens, draft.budget, dict(draft.holdout)) == (512_000, 12, {})
    assert warnings(domains, draft.top_tokens, MOST_EPOCHS) == []


def test_less_text_gets_a_shorter_ladder(tmp_path):
    assert draft_for(sized(tmp_path, {"web": 40_000, "code": 45_000})).top_tokens == 128_000


def test_one_small_domain_is_warned_of_and_shortens_nothing(tmp_path):
    domains = sized(tmp_path, {"web": 1e6, "code": 1e6, "notes": 5000})
    draft = draft_for(domains)
    assert draft.top_tokens == 512_000
    (warning,) = warnings(domains, draft.top_tokens, MOST_EPOCHS)
    assert warning.startswith("notes: far too small")
    assert "read 100 times" in warning


def test_more_domains_get_a_larger_budget(tmp_path):
    assert draft_for(sized(tmp_path, {f"d{chr(97 + i)}": 1e6 for i in range(20)})).budget == 30


def test_few_documents_hold_out_a_larger_share(tmp_path):
    assert draft_for(sized(tmp_path, {"web": 1e6}, num_documents=40)).holdout == {"web": 0.2}


def test_empty_files_and_mixed_kinds_are_warned_of(tmp_path):
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "a.txt").write_text("")
    (tmp_path / "web" / "b.jsonl").write_text('{"text": "a"}\n')
    text = "\n".join(warnings([survey(find_domains(tmp_path)[0])], 512_000, MOST_EPOCHS))
    assert "web/a.txt is empty" in text
    assert "mixes .jsonl and .txt files" in text


@pytest.mark.parametrize("names", [("web-1", "web-2"), ("Web", "webs"), ("my_web", "my-web")])
def test_nearly_equal_names_are_warned_of(tmp_path, names):
    found = warnings(sized(tmp_path, dict.fromkeys([*names, "code"], 1e6)), 512_000, MOST_EPOCHS)
    assert len(found) == 1
    assert all(name in found[0] for name in names)
    assert "code" not in found[0]
