"""Every code block of the README and of the docs is executed, or checked as far as it can be here.

A block is python (executed), yaml (validated as a study file), json (parsed), sh (every command is parsed by its
own parser; what is quick is also run) or plain text. What is not executed is named with its reason.
"""

import argparse
import contextlib
import csv
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import pytest
import typer
import yaml

from mixopt import config
from mixopt.experiments.cli import app
from mixopt.experiments.external import ExternalStudy
from tests.e2e.command_line import mixopt, write_text
from tests.unit.experiments.finished_study import finished_study, with_config
from tests.unit.experiments.http_service import served

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(page for page in DOCS.rglob("*.md") if ".in." not in page.name)]

pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="the docs are not part of an installed package")


@dataclass(frozen=True)
class Block:
    """A fenced block: where it stands, its language, its lines."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self):
        return f"{self.page}:{self.line}"


def read_blocks(page):
    """Return the fenced blocks of a page, also those inside lists."""
    found, opened = [], None
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        fence = re.match(r"( *)```(.*)$", line)
        if fence and opened is None:
            opened = (number, fence[2].strip(), len(fence[1]), [])
        elif fence:
            start, language, _, lines = opened
            name = page.relative_to(ROOT).as_posix()
            found.append(Block(name, start, language, "\n".join(lines) + "\n"))
            opened = None
        elif opened is not None:
            opened[3].append(line[opened[2] :])
    assert opened is None, f"{page}: a block is never closed"
    return found


BLOCKS = [block for page in PAGES for block in read_blocks(page)] if DOCS.is_dir() else []


def of(language):
    return [block for block in BLOCKS if block.language == language]


# --- what the blocks may be --------------------------------------------------

LANGUAGES = {
    "sh": "commands",
    "python": "executed",
    "yaml": "a study file or a piece of one",
    "json": "parsed",
    "text": "output, data or a drawing in letters: nothing to execute",
    "": "output, formulas, targets of make, or the tree of files",
}


def test_every_block_has_a_language_that_is_checked_here():
    assert not [str(block) for block in BLOCKS if block.language not in LANGUAGES]


def test_no_command_hides_in_a_block_without_a_language():
    plain = [(block, line) for block in (*of(""), *of("text")) for line in block.text.splitlines()]
    verbs = tuple(typer.main.get_command(app).commands)
    commands = [f"{block}: {line}" for block, line in plain if line.startswith(tuple(f"mixopt {v} " for v in verbs))]
    assert not commands, "write them in a block of the language sh"


@pytest.mark.parametrize("block", of("json"), ids=str)
def test_every_piece_of_json_parses(block):
    assert json.loads(block.text) is not None


# --- shell: every line is parsed ---------------------------------------------


def command_lines(block):
    """Return the commands of a block as words; comments and continuation lines are resolved."""
    joined = block.text.replace("\\\n", " ")
    return [words for line in joined.splitlines() if (words := shlex.split(line, comments=True))]


def parse_mixopt(words):
    """Parse a command of ours by the parser of its verb; nothing is run."""
    group = typer.main.get_command(app)
    own = list(words[1:])
    while own and own[0] in ("-v", "-vv", "--verbose"):
        own.pop(0)
    assert own, "a verb is missing"
    assert own[0] in group.commands, f"no verb {own[0]}"
    return group.commands[own[0]].make_context(own[0], own[1:])


def check_make(words):
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert [w for w in words[1:] if "=" not in w and w not in targets] == []


def check_pip(words):
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extra in re.findall(r"mixopt\[(\w+)\]", " ".join(words)):
        assert extra in extras, extra


def check_python(words):
    if words[1] == "-c":
        compile(words[2], "docs", "exec")
    else:
        assert words[1] == "-m" or (ROOT / words[1]).is_file(), f"no file {words[1]}"


def check_files(words):
    """Files that a command copies from the repository must be there."""
    for word in words[1:]:
        if word.startswith(("experiments/", "docs/", "tests/")):
            assert list(ROOT.glob(word)), f"no file {word}"


def parse_curl(words):
    """Return method, path and body of a call that the docs make with curl."""
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("-s", action="store_true")
    parser.add_argument("-H", action="append", default=[])
    parser.add_argument("-d")
    call = parser.parse_args(words[1:])
    return re.sub(r"^http://[^/]+", "", call.url), call.d and call.d.encode()


PARSERS = {
    "mixopt": parse_mixopt,
    "make": check_make,
    "pip": check_pip,
    "python": check_python,
    "curl": parse_curl,
    "cp": check_files,
    "mkdir": check_files,
    "export": check_files,
}
UNPARSED = {
    "chmod": "a program of the system",
    "ssh": "needs another machine",
}


@pytest.mark.parametrize("block", of("sh"), ids=str)
def test_every_command_line_is_accepted_by_its_parser(block):
    for words in command_lines(block):
        assert words[0] in PARSERS or words[0] in UNPARSED, f"nothing checks {' '.join(words)}"
        if words[0] in PARSERS:
            PARSERS[words[0]](words)


def test_every_inline_command_names_a_verb_and_options_that_exist():
    group = typer.main.get_command(app)
    for page in PAGES:
        prose = re.sub(r"^ *```.*?^ *```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        for command in re.findall(r"`mixopt ([a-z][a-z-]*(?: [^`]*)?)`", prose):
            verb, *rest = command.split()
            assert verb in group.commands, f"{page.name}: {command}"
            known = {option for parameter in group.commands[verb].params for option in parameter.opts} | {
                "--help",
                "-h",
            }
            assert not [w for w in rest if w.startswith("-") and w not in known], f"{page.name}: {command}"


# --- the site ----------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site; the build is strict, so it fails on a link or page that leads nowhere."""
    pytest.importorskip("material", reason="the site needs pip install 'mixopt[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_is_in_the_site(site):
    pages = [page.relative_to(DOCS).with_suffix(".html") for page in PAGES if page.is_relative_to(DOCS)]
    assert not [str(page) for page in (*pages, Path("decisions/index.html")) if not (site / page).is_file()]


def test_the_site_loads_nothing_from_a_network(site):
    loading = r"<(?:script|img|iframe|link rel=\"(?:stylesheet|preconnect)\")[^>]*(?:src|href)=\"(?:https?:)?//"
    for page in site.rglob("*.html"):
        assert not re.findall(loading, page.read_text(encoding="utf-8")), page.name


def test_no_list_or_table_is_left_as_plain_text_in_the_site(site):
    """The site's Markdown wants an empty line before a list or a table; the repository's does not."""
    for page in site.rglob("*.html"):
        text = re.sub(r"<pre.*?</pre>", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert not re.findall(r"^(?:<p>)?(?:- |\* |\| ).*", text, flags=re.MULTILINE), page.name


@pytest.mark.parametrize("name", ["mde", "fidelity", "surrogate", "acquisition"])
def test_every_drawing_has_a_title_and_a_description_and_a_ground_of_its_own(name):
    root = ElementTree.parse(DOCS / "images" / f"{name}.svg").getroot()
    inside = {child.tag.rpartition("}")[2]: child for child in reversed(root)}
    assert inside["title"].text
    assert inside["desc"].text
    assert inside["rect"].get("class") == "ground"
    assert "prefers-color-scheme: dark" in inside["style"].text


# --- yaml --------------------------------------------------------------------

OTHER_YAML = {}  # page:line -> why it is no piece of a study file; none so far


def load_yaml(text):
    return yaml.load(text, Loader=config._UniqueKeyLoader)


def names_in(piece):
    """Every domain that a piece refers to, so that the rest of the file can define it."""
    limits, validation = piece.get("constraints", {}), piece.get("validation", {})
    named = {name for group in limits.get("groups", []) for name in group["domains"]} | set(limits.get("bounds", {}))
    return named | {name for mixture in validation.get("mixtures", {}).values() for name in mixture} | {"web"}


@pytest.mark.parametrize("block", [b for b in of("yaml") if str(b) not in OTHER_YAML], ids=str)
def test_every_piece_of_a_study_file_is_valid(block):
    piece = load_yaml(block.text)
    if "trainer" in piece:
        assert config.validate_external(piece, str(block))
        return
    rest = {
        "name": "piece",
        "domains": {name: {"path": f"{name}.txt"} for name in sorted(names_in(piece))},
        "objective": {"expression": "loss/web"},
    }
    assert config.validate({**rest, **piece}, str(block))


# --- the folders that the pages speak of -------------------------------------

RUNS = """run,fidelity,cost,weight/web,weight/code,loss/web,loss/code,score/quiz
a1,30m,1,0.50,0.50,3.41,2.10,0.31
a2,30m,1,0.80,0.20,3.29,2.45,0.30
a3,30m,1,0.20,0.80,3.60,1.95,0.29
b1,60m,2,0.70,0.30,2.95,2.00,0.42
b2,60m,2,0.40,0.60,3.05,1.80,0.40
b3,60m,2,0.60,0.40,2.98,1.90,0.41
"""
NEXT = "run,weight/web,weight/code\nn1,0.6,0.4\nn2,0.3,0.7\n"
EARLIER = (
    "run,fidelity,weight/web,weight/code,weight/books,loss/chat\nold-1,60m,0.5,0.2,0.3,3.1\nold-2,60m,0.2,0.5,0.3,3.3\n"
)
POSSIBLE = "run,fidelity,weight/web,weight/code,weight/books\n" + "".join(
    f"{rung}-{web},{rung},{web},{0.9 - web:.1f},0.1\n" for rung in ("60m", "1b") for web in (0.1, 0.3, 0.5)
)
# Sizes that train in a second; everything else is what `mixopt init` and the tutorial write.
TINY = {
    "tokenizer": {"vocab_size": 300},
    "proxy": {"width": 32, "head_dim": 16, "experts": 2, "top_k": 1, "sequence_length": 32, "batch_size": 2},
    "ladder": [{"name": "low", "tokens": 256}, {"name": "mid", "tokens": 384}, {"name": "top", "tokens": 512}],
    "evaluation": {"tokens": 128, "domain_tokens": 128},
    "search": {"batch_size": 2, "budget": 2},
    "validation": {"seeds": 1},
    "run": {"executor": "serial", "workers": 1, "tracking_uri": "none"},
}
DOMAINS = ("web", "code", "python", "speeches", "literature")


def write_folder_of_text(folder):
    """One file per domain that a page mixes, and a target: the same small texts under many names."""
    texts = list(write_text(folder / "small").values())
    for i, name in enumerate((*(f"my-text/{domain}" for domain in DOMAINS), "target/one")):
        path = folder / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        # A word of its own keeps the documents of two domains apart.
        rows = [json.loads(line)["text"] for line in texts[i % 2].read_text(encoding="utf-8").splitlines()]
        path.write_text("".join(json.dumps({"text": f"{path.stem} {row}"}) + "\n" for row in rows), encoding="utf-8")


def write_tables(folder):
    """Runs tables and folders of runs in the layouts that the pages convert."""
    (folder / "runs.csv").write_text(RUNS, encoding="utf-8")
    rows = RUNS.splitlines(keepends=True)
    (folder / "old.csv").write_text("".join(rows[:4]), encoding="utf-8")
    (folder / "later.csv").write_text("".join([rows[0], *rows[4:]]).replace("60m", "300m"), encoding="utf-8")
    for name, text in {"next": NEXT, "earlier": EARLIER, "possible": POSSIBLE}.items():
        (folder / f"{name}.csv").write_text(text, encoding="utf-8")
    (folder / "regmix").mkdir()
    for out in ("regmix/data", "DIR"):
        run_mixopt("convert", "runs.csv", "--to", "regmix", "--out", out)
    run_mixopt("convert", "runs.csv", "--to", "olmix", "--fidelity", "30m", "--out", "swarm")
    run_mixopt("convert", "later.csv", "--out", "new.parquet")


def write_studies(folder):
    """A study of our own that is done, as the tutorial does it, and studies for a trainer of one's own."""
    run_mixopt("init", "my-text", "--out", "study.yaml")
    study = load_yaml((folder / "study.yaml").read_text(encoding="utf-8"))
    for block in of("yaml"):
        if block.page == "docs/tutorial.md":
            study |= load_yaml(block.text)
    for source in study["domains"].values():
        source["holdout"] = 0.2  # of sixty documents, so that some are held out
    (folder / "study.yaml").write_text(yaml.safe_dump(study | TINY, sort_keys=False), encoding="utf-8")
    run_mixopt("check", "study.yaml")
    run_mixopt("run", "study.yaml")
    with_config(finished_study(folder / "runs" / "quickstart"))
    own = next(b for b in of("yaml") if b.page == "docs/ask-tell.md")
    for name in ("my-mixture", "external"):
        (folder / f"{name}.yaml").write_text(own.text.replace("my-mixture", name), encoding="utf-8")
    run_mixopt("tell", "external.yaml", "--runs", "earlier.csv")  # the page on the report shows one that is under way


def run_mixopt(*words):
    done = mixopt(*words)
    assert done.code == 0, f"mixopt {' '.join(words)}: {done.err}"
    return done


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder with all that the pages take for granted."""
    folder = tmp_path_factory.mktemp("docs")
    with contextlib.chdir(folder):
        write_folder_of_text(folder)
        write_tables(folder)
        write_studies(folder)
    return folder


@pytest.fixture
def world(base, tmp_path, monkeypatch):
    """A copy of that folder for one block, as working directory."""
    folder = tmp_path / "world"
    shutil.copytree(base, folder)
    monkeypatch.chdir(folder)
    return folder


# --- shell: what is quick is also run ----------------------------------------

NOT_RUN = {
    "run": "trains for minutes at the sizes of the page; the fixture `base` does it at tiny ones",
    "check": "as run",
    "serve": "serves until it is interrupted; tests/e2e/test_serve.py, and the calls below",
    "dashboard": "serves until it is interrupted; MLflow is in tests/integration/test_tracking.py",
    "sync": "needs an MLflow store; tests/integration/test_tracking.py",
    "doctor": "its answer depends on the machine; tests/unit/experiments/test_cli.py",
    "replay": "minutes; tests/unit/experiments/test_cli_replay.py",
    "bench": "trains for hours",
}


def quick_blocks():
    """Return (block, its commands to run); a command that stands on several pages is run once."""
    found, seen = [], set()
    for block in of("sh"):
        commands = [words for words in command_lines(block) if words[0] == "mixopt" and words[1] not in NOT_RUN]
        if any(" ".join(words) not in seen for words in commands):
            found.append((block, commands))
            seen |= {" ".join(words) for words in commands}
    return found


def prepare(words, folder):
    """Do what a person does between two commands: train what was suggested, write to a new place."""
    if words[1] == "tell" and "finished.csv" in words:
        rows = list(csv.DictReader((folder / "next.csv").open(encoding="utf-8")))
        if "fidelity" not in rows[0]:
            run_mixopt("suggest", words[2], "-n", "4", "--out", "suggested.csv")
            rows = list(csv.DictReader((folder / "suggested.csv").open(encoding="utf-8")))
        with (folder / "finished.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, [*rows[0], "loss/chat"])
            writer.writeheader()
            writer.writerows({**row, "loss/chat": 3 + 0.1 * i} for i, row in enumerate(rows))
    if "--out" in words:
        out = folder / words[words.index("--out") + 1]
        if out.is_file():
            out.unlink()


@pytest.mark.parametrize(("block", "commands"), [pytest.param(*pair, id=str(pair[0])) for pair in quick_blocks()])
def test_every_quick_command_succeeds_in_the_folder_it_speaks_of(block, commands, world):
    for words in commands:
        prepare(words, world)
        assert run_mixopt(*words[1:]).out.strip()


# --- python ------------------------------------------------------------------


def execute(block, **names):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(block.text, str(block), "exec"), {"__name__": "docs", **names})
    return out.getvalue()


@pytest.mark.parametrize("block", [b for b in of("python") if "Client(" not in b.text], ids=str)
def test_every_piece_of_python_runs_in_the_folder_it_speaks_of(block, world):
    printed = execute(block)
    assert ("print(" in block.text) == bool(printed.strip())


PORT = "http://127.0.0.1:8765"


def own_trainer():
    """The study that the page on HTTP continues from the page on ask and tell."""
    block = next(b for b in of("yaml") if b.page == "docs/ask-tell.md" and "trainer: external" in b.text)
    fields = load_yaml(block.text)
    return ExternalStudy.create(
        domains=fields["domains"],
        ladder=fields["ladder"],
        objective=fields["objective"],
        search={**fields["search"], "optimizer": "random"},
    )


def test_the_calls_over_http_are_answered_in_the_order_of_the_page():
    calls = [b for b in BLOCKS if b.page == "docs/serve.md" and (b.language == "python" or "curl" in b.text)]
    assert {block.language for block in calls} == {"python", "sh"}
    with served(own_trainer()) as service:
        for block in calls:
            if block.language == "python":
                assert execute(Block(block.page, block.line, "python", block.text.replace(PORT, service.url)))
                continue
            for words in command_lines(block):
                path, body = parse_curl(words)
                answer = service.send(path, body)
                assert answer.code == 200, f"{' '.join(words)}: {answer.text}"
