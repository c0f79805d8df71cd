"""Exports: the same file as ever, weights that survive the format, and samplers that draw the mixture.

After a wanted change of a format, write the golden files anew: python -m tests.unit.experiments.test_export
"""

import ast
import csv
import io
import itertools
import json
import re
import shlex
import subprocess
import tempfile
from collections import Counter
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mixopt.config import dump_config, validate_external
from mixopt.errors import ConfigError
from mixopt.experiments.export import Blend, Share, Source, printed
from mixopt.experiments.export_formats import FORMATS, ROWS, find_unit
from mixopt.experiments.export_syntax import render
from mixopt.experiments.external import build_header
from mixopt.mixture import Domain, Mixture
from mixopt.proposal import Recommendation
from mixopt.study import Study
from tests.e2e.command_line import mixopt
from tests.unit.experiments.finished_study import BEST, HEADER, LADDER, NAMES, finished_study, started_study

GOLDEN = Path(__file__).parent / "golden"
SHARES = dict(zip(NAMES, BEST.tolist(), strict=True))
TEXT = {
    "web": {"path": "/corpus/web/*.jsonl"},
    "python": {"path": "/corpus/python.parquet", "text": "code"},
    "math": {"path": "/corpus/it's math.txt"},
    "spanish": {"hub": "some/spanish", "config": "es", "text": "content"},
}


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run_directory(folder, make=finished_study, **fields):
    """A run directory of a synthetic study, with its resolved study file."""
    make(folder / "run")
    rungs = [{"name": rung.name, "tokens": rung.num_tokens} for rung in LADDER]
    config = {"name": "three-sets", "domains": TEXT, "objective": dict(HEADER.objective), "ladder": rungs, **fields}
    (folder / "run" / "study.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return folder / "run"


def golden_study(folder):
    return run_directory(folder, constraints={"target_tokens": 1_000_000})


@pytest.fixture(scope="module")
def golden_directory(tmp_path_factory):
    return golden_study(tmp_path_factory.mktemp("golden"))


def external(folder, **tokens):
    """An external study of two domains with a recommendation; only tokens may be known."""
    domains = {name: {"tokens": tokens.get(name)} for name in ("web", "code")}
    fields = {"name": "own", "trainer": "external", "domains": domains, "objective": "loss/chat"}
    config = validate_external(fields, "study.yaml")
    study = Study(folder)
    study.begin(build_header(config))
    mixture = Mixture(("web", "code"), [0.123456789, 0.876543211])
    study.recommend(Recommendation(mixture, "target", {}, {}, None, (), "random", "best measured"), ())
    study.files.config.write_text(dump_config(config))
    return folder


def blend(name, names, weights, *, unit=None, lengths=None, sources=None):
    """A mixture of domains with 1000 tokens each, and `lengths` tokens per document."""
    form = FORMATS[name]
    lengths, sources = lengths or [10] * len(names), sources or [None] * len(names)
    shares = tuple(
        Share(n, w, 1000 * length, 1000, source)
        for n, w, length, source in zip(names, weights, lengths, sources, strict=True)
    )
    return Blend(form, "study", "by hand", shares, "t0", None, find_unit(form, unit))


# --- what is written -----------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_writes_what_it_always_wrote(name, golden_directory):
    text = mixopt("export", golden_directory, "--format", name).out
    assert text == (GOLDEN / f"{name}.txt").read_text(encoding="utf-8")


def test_every_golden_file_belongs_to_a_format():
    assert {path.stem for path in GOLDEN.glob("*.txt")} == set(FORMATS)


def test_a_file_holds_what_stdout_shows_and_replaces_an_older_one(tmp_path):
    directory, out = golden_study(tmp_path), tmp_path / "new" / "mixture.yaml"
    shown = mixopt("export", directory, "--format", "olmo-core").out
    for _ in range(2):
        answer = mixopt("export", directory, "--format", "olmo-core", "--out", out)
        assert answer.out.startswith(f"wrote {out}: YAML for OLMo-core")
        assert out.read_text(encoding="utf-8") == shown
    assert [path.name for path in out.parent.iterdir()] == ["mixture.yaml"]


def test_json_says_unit_weights_and_what_was_left_out(tmp_path):
    words = ("--format", "hf", "--mixture", "web=0.5,python=0.5", "--json")
    data = mixopt("export", golden_study(tmp_path), *words).data
    assert (data["unit"], data["left_out"], data["out"]) == ("documents", ["math", "spanish"], None)
    # 666.7 and 750 tokens per document
    assert data["weights"] == {"web": 0.529412, "python": 0.470588}
    assert data["token_shares"] == {"web": 0.5, "python": 0.5, "math": 0.0, "spanish": 0.0}
    assert "Left out, no weight: math, spanish." in data["notes"]
    assert ast.parse(data["text"])


def test_the_mixture_of_a_trial_can_be_exported(tmp_path):
    data = mixopt("export", golden_study(tmp_path), "--format", "json", "--trial", "expert-math").data
    assert data["weights"] == {"web": 0.0, "python": 0.0, "math": 1.0, "spanish": 0.0}
    assert data["origin"] == "that of trial expert-math"


def test_help_names_every_format_with_its_line(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    text = mixopt("export", "--help").out
    assert not [f for f in FORMATS.values() if not re.search(rf"^ *{f.name} +{re.escape(f.summary)} *$", text, re.M)]


# --- wrong use -----------------------------------------------------------------


def test_without_a_recommendation_there_is_nothing_to_export(tmp_path):
    answer = mixopt("export", run_directory(tmp_path, started_study), "--format", "hf")
    assert (answer.code, answer.out) == (2, "")
    assert "has no recommended mixture yet" in answer.err
    assert "--mixture" in answer.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--format", "megatorn"), "did you mean 'megatron'?"),
        (("--format", "llama_factory"), "did you mean 'llama-factory'?"),
        (("--format", "xyz"), "Known are hf, megatron"),
        (("--format", "megatron", "--unit", "documents"), "--unit: expected tokens for megatron"),
        (("--format", "hf", "--unit", "bytes"), "expected documents or tokens for hf"),
        (("--format", "hf", "--mixture", "web=1", "--trial", "expert-web"), "drop one of them"),
        (("--format", "hf", "--mixture", "web=0.5"), "weights must sum to 1"),
        (("--format", "hf", "--mixture", "wep=1"), "unknown domain 'wep'"),
        (("--format", "hf", "--out", "."), "is a folder"),
    ],
)
def test_wrong_use_is_refused_with_a_way_out(words, message, golden_directory):
    answer = mixopt("export", golden_directory, *words)
    assert (answer.code, answer.out) == (2, "")
    assert message in answer.err


def test_a_name_with_a_comma_cannot_be_in_a_list_with_commas():
    with pytest.raises(ConfigError, match="rename the domain"):
        render(blend("llama-factory", ["a,b", "c"], [0.5, 0.5]))


def test_a_regmix_key_that_begins_another_is_pointed_out():
    text = render(blend("regmix", ["web", "web-code"], [0.5, 0.5]))
    assert "WRONG FILES: train_the_pile_web also begins train_the_pile_web-code" in text


# --- external studies ----------------------------------------------------------


def test_without_document_counts_the_shares_stay_those_of_tokens_and_the_file_says_so(tmp_path):
    study = external(tmp_path / "run", web=3000, code=1000)
    data = mixopt("export", study, "--format", "hf", "--mixture", "web=0.75,code=0.25", "--json")
    assert data.data["weights"] == {"web": 0.75, "code": 0.25}
    assert data.data["unit"] == "tokens"
    assert "Shares of TOKENS" in data.data["text"]
    assert "knows no document counts" in data.err


def test_the_recommendation_of_an_external_study_is_exported(tmp_path):
    directory = external(tmp_path / "run")
    weights = mixopt("export", directory, "--format", "json").data["weights"]
    assert weights == {"web": 0.123457, "code": 0.876543}


def test_parts_of_domains_need_the_tokens_there_are(tmp_path):
    answer = mixopt("export", external(tmp_path / "run"), "--format", "axolotl", "--mixture", "web=0.5,code=0.5")
    assert answer.code == 2
    assert "domains.web.tokens" in answer.err


def test_paths_that_nobody_knows_are_placeholders_and_the_file_says_so(tmp_path):
    text = mixopt("export", external(tmp_path / "run"), "--format", "megatron", "--mixture", "web=0.5,code=0.5").out
    assert "0.500000 web_text_document" in text
    assert "correct the paths below" in text


# --- conversions ---------------------------------------------------------------


def test_shares_of_documents_give_back_the_shares_of_tokens():
    lengths = [3, 700, 40_000]
    shares = blend("hf", "abc", [0.2, 0.3, 0.5], lengths=lengths)
    drawn = np.array(list(shares.weights.values())) * lengths
    # Three digits of the smallest share are certain.
    assert drawn / drawn.sum() == pytest.approx([0.2, 0.3, 0.5], rel=1e-3)


def test_equally_long_documents_need_no_conversion():
    same = blend("hf", "abc", [0.2, 0.3, 0.5], lengths=[7, 7, 7])
    assert same.weights == same.tokens


def test_parts_of_domains_give_back_the_mixture():
    lengths = [3, 700, 40]
    parts = blend("axolotl", "abc", [0.2, 0.3, 0.5], lengths=lengths)
    kept = np.array(list(parts.weights.values())) * lengths
    assert max(parts.weights.values()) == 1.0
    assert kept / kept.sum() == pytest.approx([0.2, 0.3, 0.5], rel=1e-3)
    assert parts.kept_tokens == pytest.approx(1000 * kept.sum(), rel=1e-3)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.floats(0, 1, allow_subnormal=False), min_size=1, max_size=30).filter(lambda v: sum(v) > 1e-3))
def test_printed_shares_sum_to_one_to_the_last_digit_and_stay_near(values):
    names = [f"d{i}" for i in range(len(values))]
    shares = printed(names, values)
    assert sum(Decimal(repr(share)) for share in shares.values()) == 1
    exact = np.array(values) / np.sum(values)
    assert np.abs(np.array(list(shares.values())) - exact).max() < 1e-6
    assert all(share == 0 for share, value in zip(shares.values(), values, strict=True) if value == 0)


def test_a_small_share_is_not_rounded_away():
    assert printed(["a", "b"], [1.0, 2.5e-8])["b"] == pytest.approx(2.5e-8, rel=1e-3)


# --- every format is read back ---------------------------------------------------

# What no file name, and no file in UTF-8, can hold: the null character and lone surrogates.
words = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=12)
plain = st.text(st.characters(exclude_characters="\0,", exclude_categories=["Cs"]), min_size=1, max_size=12)
nasty = st.sampled_from(
    ['a"b', "it's", "a, b", "a b", "$(x)", "`x`", "a\nb", "a\\", "#a", "é\u2028", "1", "yes", "- a"]
)


@st.composite
def mixtures(draw, names=words):
    chosen = draw(st.lists(st.one_of(nasty, names), min_size=1, max_size=5, unique=True))
    weights = draw(st.lists(st.integers(1, 100), min_size=len(chosen), max_size=len(chosen)))
    paths = draw(st.lists(st.one_of(nasty, words), min_size=len(chosen), max_size=len(chosen)))
    lengths = draw(st.lists(st.integers(1, 1000), min_size=len(chosen), max_size=len(chosen)))
    sources = [Source.at(f"corpus/{path}", column=column) for path, column in zip(paths, reversed(paths), strict=True)]
    shares = [weight / sum(weights) for weight in weights]
    return {"names": chosen, "weights": shares, "lengths": lengths, "sources": sources}


def assigned(text, *names):
    """The first literal that one of the variables is set to in a Python file."""
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and node.targets[0].id in names:
            return ast.literal_eval(node.value)
    raise AssertionError(f"no assignment to {names}")


def without_comments(text):
    return "".join(line for line in text.splitlines(keepends=True) if not line.startswith("#"))


def read_python(text):
    return assigned(text, "probabilities", "proportions", "weights")


def read_pairs(pairs, made):
    """{name: weight} of a list weight, prefix, weight, ...; the prefixes are those of the domains."""
    weights, prefixes = pairs[::2], pairs[1::2]
    assert list(prefixes) == [share.beside("_text_document") for share in made.used]
    return {share.name: float(weight) for share, weight in zip(made.used, weights, strict=True)}


def read_shell(text, made):
    begin, data_path, *pairs, end = shlex.split(text, comments=True)
    assert (begin, data_path, end) == ("DATA_ARGS=(", "--data-path", ")")
    return read_pairs(pairs, made)


def read_llama(text, _):
    data = yaml.safe_load(text)
    entries = re.findall(r"^#   (\".*),$", text, flags=re.MULTILINE)
    info = json.loads("{" + ",".join(entries) + "}")
    names = data["dataset"].split(",")
    assert list(info) == names
    return dict(zip(names, map(float, data["interleave_probs"].split(",")), strict=True))


def read_csv(text, _):
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    return {row["domain"]: float(row["token_share"]) for row in rows}


def read_nanotron(text, made):
    dataset = yaml.safe_load(text)["data_stages"][0]["data"]["dataset"]
    assert dataset["dataset_folder"] == [share.beside("-tokenized") for share in made.used]
    return dict(zip([share.name for share in made.used], dataset["dataset_weights"], strict=True))


def read_axolotl(text, made):
    entries = yaml.safe_load(text)["datasets"]
    assert [entry["field"] for entry in entries] == [share.source.column for share in made.used]
    return {share.name: entry["weight"] for share, entry in zip(made.used, entries, strict=True)}


READERS = {
    "hf": lambda text, _: read_python(text),
    "mosaic": lambda text, _: read_python(text),
    "litdata": lambda text, _: read_python(text),
    "ray-data": lambda text, _: read_python(text),
    "torchtitan": lambda text, _: read_python(text),
    "nemo": lambda text, made: read_pairs(assigned(text, "train"), made),
    "megatron": read_shell,
    "olmo-core": lambda text, _: {s["source_name"]: s["target_ratio"] for s in yaml.safe_load(text)["sources"]},
    "olmix": lambda text, _: {name: entry["weight"] for name, entry in yaml.safe_load(text)["mix"].items()},
    "regmix": lambda text, _: {k.removeprefix("train_the_pile_"): v for k, v in yaml.safe_load(text)["train"].items()},
    "llama-factory": read_llama,
    "axolotl": read_axolotl,
    "nanotron": read_nanotron,
    "json": lambda text, _: json.loads(text)["weights"],
    "yaml": lambda text, _: yaml.safe_load(text)["weights"],
    "csv": read_csv,
}


@pytest.mark.parametrize("name", FORMATS)
def test_weights_names_and_paths_survive_every_format(name):
    allowed = plain.filter(lambda n: n == n.strip()) if name == "llama-factory" else words

    @settings(deadline=None, max_examples=15)
    @given(mixtures(allowed))
    def survives(mixture):
        if name == "llama-factory":
            mixture["names"] = [n.replace(",", ";").strip() or "x" for n in mixture["names"]]
            if len(set(mixture["names"])) < len(mixture["names"]):
                return
        made = blend(name, **mixture)
        text = render(made)
        read = READERS[name](text, made)
        assert read == made.weights
        assert made.unit == ROWS or sum(Decimal(repr(weight)) for weight in read.values()) == 1

    survives()


@pytest.mark.parametrize("name", ["hf", "ray-data", "torchtitan"])
def test_paths_survive_in_python(name):
    @settings(deadline=None, max_examples=15)
    @given(mixtures())
    def survives(mixture):
        made = blend(name, **mixture)
        texts = {n.value for n in ast.walk(ast.parse(render(made))) if isinstance(n, ast.Constant)}
        assert {share.source.files for share in made.used} <= texts

    survives()


def test_the_shell_reads_the_array_as_python_does(tmp_path):
    made = blend("megatron", ["it's", 'a "b"', "$(rm x)", "c\nd"], [0.25] * 4)
    (tmp_path / "args.sh").write_text(render(made))
    command = "source args.sh && printf '%s\\0' \"${DATA_ARGS[@]}\""
    out = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=tmp_path, check=True).stdout
    data_path, *pairs = out.rstrip("\0").split("\0")
    assert data_path == "--data-path"
    assert read_pairs(pairs, made) == made.weights


# --- what samplers draw ----------------------------------------------------------

TARGET = {"web": 0.3, "code": 0.3, "books": 0.4}
LENGTHS = {"web": 8, "code": 12, "books": 16}  # mean tokens; documents have a quarter more or fewer
NUM_DOCS = {"web": 3400, "code": 2300, "books": 2300}  # enough for NUM_DRAWS without a repetition
NUM_DRAWS = 7000


def documents(name):
    """Documents of one domain; a word is a token and names its domain."""
    mean, count = LENGTHS[name], NUM_DOCS[name]
    lengths = [mean + (mean // 4) * (-1) ** i for i in range(count)]
    return [" ".join([name] * length) for length in lengths]


def corpus_study(folder):
    """A run directory of a study whose text is on disk, as many tokens and documents as its ledger says."""
    folder.mkdir(exist_ok=True)
    domains = {}
    for name in TARGET:
        path = folder / f"{name} text.jsonl"
        path.write_text("".join(json.dumps({"body": text}) + "\n" for text in documents(name)))
        domains[name] = {"path": str(path), "text": "body"}
    sizes = [Domain(n, sum(len(t.split()) for t in documents(n)), NUM_DOCS[n], 1) for n in TARGET]
    fields = {**vars(HEADER), "domains": tuple(sizes)}
    Study(folder / "run").begin(type(HEADER)(**fields))
    config = {"name": "three-sets", "domains": domains, "objective": dict(HEADER.objective)}
    (folder / "run" / "study.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return folder / "run"


def exported(folder, name, *words, **replaced):
    """The dataset that an exported Python file makes."""
    mixture = ",".join(f"{domain}={weight}" for domain, weight in TARGET.items())
    text = mixopt("export", corpus_study(folder / "corpus"), "--format", name, "--mixture", mixture, *words).out
    for old, new in replaced.items():
        text = re.sub(rf"^{old} = .*$", f"{old} = {new}", text, flags=re.MULTILINE)
    variables = {}
    exec(compile(text, "exported", "exec"), variables)
    return variables["dataset"]


def token_shares(texts):
    counts = Counter(word for text in texts for word in text.split())
    return {name: counts[name] / counts.total() for name in TARGET}


def standard_deviation(num_draws):
    """Of a domain's share of tokens when documents are drawn at random (delta method); the largest."""
    rate = {name: TARGET[name] / LENGTHS[name] for name in TARGET}
    drawn = {name: value / sum(rate.values()) for name, value in rate.items()}
    mean = sum(drawn[name] * LENGTHS[name] for name in TARGET)
    square = {name: drawn[name] * 1.0625 * LENGTHS[name] ** 2 for name in TARGET}  # 0.75 or 1.25 of the mean
    deviations = [
        sum(square[other] * ((other == name) - TARGET[name]) ** 2 for other in TARGET) ** 0.5 / mean for name in TARGET
    ]
    return max(deviations) / num_draws**0.5


def near_target(shares):
    # What issue 7 asks for; the test below says how far that is from chance.
    assert shares == pytest.approx(TARGET, abs=0.02)


def test_the_tolerance_is_three_standard_deviations_of_the_draws():
    assert 3 * standard_deviation(NUM_DRAWS) < 0.02


def test_datasets_draws_the_shares_of_tokens(tmp_path):
    rows = itertools.islice(exported(tmp_path, "hf"), NUM_DRAWS)
    near_target(token_shares([row["text"] for row in rows]))


def test_datasets_would_miss_the_shares_without_the_conversion(tmp_path):
    rows = itertools.islice(exported(tmp_path, "hf", "--unit", "tokens"), 2000)
    shares = token_shares([row["text"] for row in rows])
    assert shares["books"] > TARGET["books"] + 0.08


@pytest.mark.ray
@pytest.mark.bench  # starting Ray and its data library takes longer than all other tests here
def test_ray_data_mixes_the_shares_of_tokens(tmp_path):
    ray = pytest.importorskip("ray")
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        dataset = exported(tmp_path, "ray-data")
        near_target(token_shares([row["text"] for row in dataset.take_all()]))
    finally:
        ray.shutdown()


def blocks(name, size):
    """The text of a domain as blocks of equally many tokens, numbered by domain."""
    tokens = np.full(sum(len(text.split()) for text in documents(name)), list(TARGET).index(name), dtype=np.int64)
    return tokens[: len(tokens) // size * size].reshape(-1, size)


def block_shares(samples):
    counts = Counter(int(token) for sample in samples for token in np.asarray(sample))
    return {name: counts[i] / counts.total() for i, name in enumerate(TARGET)}


def write_mds(streaming, folder, samples, columns):
    with streaming.MDSWriter(out=str(folder), columns=columns) as writer:
        for sample in samples:
            writer.write(sample)


def test_streaming_draws_the_shares_of_tokens_from_blocks(tmp_path):
    streaming = pytest.importorskip("streaming")
    for name in TARGET:
        samples = [{"tokens": block} for block in blocks(name, 8)]
        write_mds(streaming, tmp_path / "corpus" / f"{name}-mds", samples, {"tokens": "ndarray:int64"})
    near_target(block_shares(sample["tokens"] for sample in exported(tmp_path, "mosaic")))


def test_streaming_draws_the_shares_of_tokens_from_documents(tmp_path):
    streaming = pytest.importorskip("streaming")
    for name in TARGET:
        samples = [{"text": text} for text in documents(name)]
        write_mds(streaming, tmp_path / "corpus" / f"{name}-mds", samples, {"text": "str"})
    near_target(token_shares(sample["text"] for sample in exported(tmp_path, "mosaic", "--unit", "documents")))


def write_litdata(folder, samples, item_loader=None):
    from litdata.streaming.cache import Cache

    folder.mkdir(parents=True)
    cache = Cache(str(folder), chunk_bytes="64KB", item_loader=item_loader)
    for i, sample in enumerate(samples):
        cache[i] = sample
    cache.done()
    cache.merge()


def test_litdata_draws_the_shares_of_tokens_from_blocks(tmp_path):
    litdata, torch = pytest.importorskip("litdata"), pytest.importorskip("torch")
    for name in TARGET:
        samples = [torch.from_numpy(block) for block in blocks(name, 4)]
        write_litdata(tmp_path / "corpus" / f"{name}-litdata", samples, litdata.TokensLoader(block_size=4))
    near_target(block_shares(exported(tmp_path, "litdata", BLOCK_SIZE=4)))


def test_litdata_draws_the_shares_of_tokens_from_documents(tmp_path):
    pytest.importorskip("litdata")
    for name in TARGET:
        write_litdata(tmp_path / "corpus" / f"{name}-litdata", documents(name))
    near_target(token_shares(exported(tmp_path, "litdata", "--unit", "documents")))


def main() -> None:
    """Write the golden files anew."""
    GOLDEN.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        directory = golden_study(Path(folder))
        for name in FORMATS:
            text = mixopt("export", directory, "--format", name).out
            (GOLDEN / f"{name}.txt").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
