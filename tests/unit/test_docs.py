"""The docs say what the code does: fields, verbs, names, files, commands, links."""

import ast
import importlib.util
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
import yaml
from pydantic import BaseModel

import mixopt
from mixopt import config
from mixopt.experiments.cli import app
from mixopt.search import catalog
from mixopt.storage import RunDirectory
from mixopt.study import Study

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(p for p in DOCS.rglob("*.md") if ".in." not in p.name)]
SOURCES = ("mixopt", "proxies", "search", "experiments")

pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="the docs are not part of an installed package")


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def reference() -> str:
    return read(DOCS / "reference.md")


def blocks(page: Path, language: str) -> list[str]:
    """Return the fenced blocks of a language on a page."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", read(page), flags=re.MULTILINE | re.DOTALL)
    return [text for name, text in found if name == language]


def config_models() -> list[type[BaseModel]]:
    found = [m for m in vars(config).values() if inspect.isclass(m) and issubclass(m, BaseModel)]
    return [m for m in found if m.__module__ == config.__name__ and m.model_fields]


def command_lines() -> Iterator[tuple[Path, str]]:
    for page in PAGES:
        for block in blocks(page, "sh"):
            for line in block.splitlines():
                if line.strip():
                    yield page, line.partition("#")[0].strip()


# --- the reference -----------------------------------------------------------


def test_the_reference_is_what_its_generator_prints():
    spec = importlib.util.spec_from_file_location("make_reference", DOCS / "make_reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    remedy = "run: python docs/make_reference.py > docs/reference.md"
    assert module.reference() == reference(), remedy


def test_no_placeholder_is_left_in_the_reference():
    assert not re.findall(r"^<!-- \w+ -->$", reference(), flags=re.MULTILINE)


@pytest.mark.parametrize("model", config_models(), ids=lambda m: m.__name__)
def test_every_study_field_is_in_the_reference(model):
    text = reference()
    for name, field in model.model_fields.items():
        assert re.search(rf"^\| `(\S+\.)?{name}` \|", text, flags=re.MULTILINE), f"{model.__name__}.{name}"
        assert not field.description or field.description in text, f"{model.__name__}.{name}: its description"


def test_every_verb_and_option_is_in_the_reference():
    text = reference()
    group = typer.main.get_command(app)
    for verb, command in group.commands.items():
        section = text.partition(f"### `mixopt {verb}`\n")[2].partition("\n#")[0]
        assert section, verb
        for parameter in command.params:
            for option in (o for o in parameter.opts if o.startswith("--") and o != "--help"):
                assert f"`{option}`" in section, f"{verb} {option}"


def test_every_verb_is_explained_beyond_the_reference():
    text = "".join(read(page) for page in (ROOT / "README.md", DOCS / "how-to.md"))
    assert not [c.name for c in app.registered_commands if f"mixopt {c.name}" not in text]


def test_every_public_name_is_in_the_reference():
    assert not [name for name in mixopt.__all__ if f"| `{name}` |" not in reference()]


def test_every_optimizer_is_in_the_reference():
    listed = reference().partition("## Optimizers\n")[2].partition("\n## ")[0]
    named = re.findall(r"`([^`]+)`", "".join(re.findall(r"^\| (`[^|]+) \|", listed, flags=re.MULTILINE)))
    assert sorted(named) == sorted(catalog.names())


def test_every_verb_says_in_the_reference_what_it_prints_as_json():
    listed = reference().partition("### What `--json` prints\n")[2].partition("\n#")[0]
    assert not [c.name for c in app.registered_commands if f"| `{c.name}` |" not in listed]


def test_every_place_of_a_run_directory_is_in_the_reference():
    files = RunDirectory(Path())
    paths = [getattr(files, name) for name, value in vars(RunDirectory).items() if isinstance(value, property)]
    paths += [files.expert("<domain>"), files.score("<fingerprint>"), files.trial("<id>"), files.job("<fingerprint>")]
    assert not [str(path) for path in paths if f"`{path}" not in reference()]


def test_every_event_of_the_ledger_is_in_the_reference():
    events = re.findall(r'^            case "(\w+)":', inspect.getsource(Study._apply), flags=re.MULTILINE)
    assert len(events) > 3
    assert not [event for event in events if reference().count(f"| `{event}` |") < 2]


# --- commands, examples, links -----------------------------------------------


def test_every_make_target_that_is_named_exists():
    targets = re.findall(r"^([a-z-]+):", read(ROOT / "Makefile"), flags=re.MULTILINE)
    named = {match for page in PAGES for match in re.findall(r"(?:^|`)make ([a-z-]+)", read(page), flags=re.MULTILINE)}
    assert {"run", "test", "setup"} <= named <= set(targets)


def test_every_mixopt_command_that_is_shown_exists():
    verbs = typer.main.get_command(app).commands
    shown = [(page, line.split()) for page, line in command_lines() if line.startswith("mixopt ")]
    assert {"init", "check", "run"} <= {words[1] for page, words in shown if page.name == "README.md"}
    for page, words in shown:
        assert words[1] in verbs, f"{page.name}: {' '.join(words)}"
        known = {option for parameter in verbs[words[1]].params for option in parameter.opts}
        assert not [w for w in words[2:] if w.startswith("--") and w not in known], f"{page.name}: {' '.join(words)}"


@pytest.mark.parametrize("block", blocks(DOCS / "how-to.md", "yaml"))
def test_every_piece_of_a_study_file_in_the_how_to_is_valid(block):
    study = {"name": "piece", "domains": {"web": {"path": "web"}}, "objective": {"expression": "loss/web"}}
    piece = yaml.load(block, Loader=config._UniqueKeyLoader)
    assert config.validate({**study, **piece}, "how-to.md")


@pytest.mark.parametrize("block", blocks(DOCS / "ask-tell.md", "yaml"))
def test_every_study_file_for_an_own_trainer_is_valid(block):
    assert config.validate_external(yaml.load(block, Loader=config._UniqueKeyLoader), "ask-tell.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_piece_of_python_in_the_docs_parses(page):
    for block in blocks(page, "python"):
        ast.parse(block)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_resolves(page):
    text = re.sub(r"^```.*?^```", "", read(page), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        target, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        place = (page.parent / target) if target else page
        assert place.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", read(place), flags=re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, link


def test_decisions_are_numbered_and_complete():
    pages = sorted((DOCS / "decisions").glob("*.md"))
    assert [int(page.name[:4]) for page in pages] == list(range(1, len(pages) + 1))
    for page in pages:
        headings = re.findall(r"^## (.+)$", read(page), flags=re.MULTILINE)
        assert headings == ["Context", "Decision", "Rejected", "Consequences"], page.name
        assert int(re.match(r"# (\d+)\. ", read(page))[1]) == int(page.name[:4])


def test_every_dependency_has_a_reason():
    import tomllib

    project = tomllib.loads(read(ROOT / "pyproject.toml"))["project"]
    extras = [line for extra in project["optional-dependencies"].values() for line in extra]
    lines = [*project["dependencies"], *extras]
    names = [re.match(r"[A-Za-z0-9-]+", line)[0] for line in lines]
    reasons = read(DOCS / "decisions" / "0008-dependencies.md")
    assert not [name for name in names if f"`{name}`" not in reasons]


# --- the file tree of the README ---------------------------------------------


def tree() -> list[tuple[str, str]]:
    """Return (path, comment) of every line of the file tree."""
    listing = next(b for b in blocks(ROOT / "README.md", "") if re.match(r"\S+/? {2,}\S", b))
    entries, folders = [], []
    for line in listing.splitlines():
        name, comment = re.match(r" *(\S+) {2,}(\S.*)", line).groups()
        depth = (len(line) - len(line.lstrip())) // 2
        folders = [*folders[:depth], name.rstrip("/")]
        entries.append(("/".join(folders), comment))
    return entries


def test_every_entry_of_the_file_tree_exists():
    assert not [path for path, _ in tree() if not list(ROOT.glob(path))]


def test_every_source_file_is_in_the_file_tree():
    listed = {file for path, _ in tree() for file in ROOT.glob(path) if file.is_file()}
    files = {f for folder in SOURCES for f in (ROOT / folder).rglob("*") if f.is_file()}
    assert not sorted(str(f.relative_to(ROOT)) for f in files - listed if "__pycache__" not in f.parts)


def test_the_comments_of_the_file_tree_are_aligned():
    listing = next(b for b in blocks(ROOT / "README.md", "") if re.match(r"\S+/? {2,}\S", b))
    assert len({re.match(r" *\S+ +", line).end() for line in listing.splitlines()}) == 1
