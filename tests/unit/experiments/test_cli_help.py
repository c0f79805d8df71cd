"""Help, examples, suggestions, colors and units: what a newcomer meets first."""

import os
import pty
import re
import shlex
import subprocess
import sys

import pytest
import typer
import yaml

from mixopt.errors import closest, did_you_mean
from mixopt.experiments import cli
from mixopt.experiments.cli_examples import EXAMPLES, epilog
from mixopt.experiments.cli_tables import duration, flop
from tests.e2e.command_line import mixopt
from tests.unit.experiments.test_cli import run_directory

GROUP = typer.main.get_command(cli.app)
LINES = [(verb, line) for verb, lines in EXAMPLES.items() for line in lines]


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_every_verb_has_an_example_in_its_help():
    assert set(EXAMPLES) == set(GROUP.commands)
    assert {verb: command.epilog for verb, command in GROUP.commands.items()} == {v: epilog(v) for v in EXAMPLES}


@pytest.mark.parametrize(("verb", "line"), LINES, ids=[line for _, line in LINES])
def test_every_example_parses(verb, line):
    program, name, *words = shlex.split(line)
    assert (program, name) == ("mixopt", verb)
    context = GROUP.commands[verb].make_context(verb, words)
    assert context.params


def test_an_example_is_shown_on_a_line_of_its_own():
    lines = [line.strip() for line in mixopt("init", "--help").out.splitlines()]
    assert set(EXAMPLES["init"]) <= set(lines)


def test_the_help_says_how_to_get_completion():
    text = mixopt("--help").out
    assert "--install-completion" in text
    assert "--show-completion" in text


@pytest.mark.slow
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shells_complete_verbs(shell, tmp_path):
    command = [sys.executable, "-c", "from mixopt.experiments.cli import app; app(prog_name='mixopt')"]
    words = {"COMP_WORDS": "mixopt exp", "COMP_CWORD": "1", "_TYPER_COMPLETE_ARGS": "mixopt exp"}
    ask = {**os.environ, **words, "_MIXOPT_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    out = subprocess.run(command, env=ask, capture_output=True, text=True, check=False).stdout
    assert "export" in out
    assert "export-model" in out


# --- suggestions -------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "meant"),
    [("wbe", "web"), ("WEB", "web"), ("code_python", "code-python"), ("xylophone", None), ("", None)],
)
def test_a_close_name_is_found_and_a_far_one_is_not(name, meant):
    assert closest(name, ["web", "code-python", "math"]) == meant
    assert did_you_mean(name, ["web", "code-python", "math"]) == (f" (did you mean {meant!r}?)" if meant else "")


def wrong(tmp_path, **changes):
    """A study file with one mistake."""
    (tmp_path / "web.txt").write_text("words")
    study = {"name": "s", "domains": {"web": {"path": "web.txt"}}, "objective": {"expression": "loss/web"}, **changes}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    return tmp_path / "study.yaml"


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (("statsu", "x"), "status"),
        (("run", "--worker", "3", "x"), "--workers"),
        (("check", "stody.yaml"), "'study.yaml'"),
        (("predict", "RUN", "--mixture", "pyton=1"), "'python'"),
        (("predict", "RUN", "--mixture", "python=1", "--fidelity", "tpo"), "'top'"),
        (("export", "RUN", "--format", "megatorn"), "'megatron'"),
        (("bench", "size"), "'sizes'"),
    ],
)
def test_a_slip_on_the_command_line_is_wrong_use_and_gets_a_suggestion(tmp_path, words, meant):
    wrong(tmp_path)
    directory = run_directory(tmp_path) if "RUN" in words else ""
    answer = mixopt(*(directory if word == "RUN" else word for word in words))
    assert answer.code == 2
    assert re.search(r"[Dd]id you mean|Possible options", answer.err)
    assert meant in answer.err


@pytest.mark.parametrize(
    ("changes", "meant"),
    [
        ({"serach": {}}, "'search'"),
        ({"search": {"bugdet": 3}}, "'budget'"),
        ({"search": {"optimizer": "mfob"}}, "'mfbo'"),
        ({"experts": {"fidelity": "tpo"}}, "'top'"),
        ({"run": {"executor": "rey"}}, "'ray'"),
    ],
)
def test_a_slip_in_the_study_file_is_wrong_use_and_gets_a_suggestion(tmp_path, changes, meant):
    answer = mixopt("check", wrong(tmp_path, **changes))
    assert answer.code == 2
    assert "did you mean" in answer.err
    assert meant in answer.err


# --- colors and units --------------------------------------------------------


def on_a_terminal(*words, **environment):
    """What a verb writes to a terminal."""
    leader, follower = pty.openpty()
    env = {
        k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "GITHUB_ACTIONS", "PYTEST_VERSION")
    }
    env |= {"TERM": "xterm-256color", **environment}
    command = [sys.executable, "-m", "mixopt.experiments.cli", *words]
    subprocess.run(command, stdout=follower, stderr=follower, env=env, check=False)
    os.close(follower)
    text = b""
    try:
        while part := os.read(leader, 65536):
            text += part
    except OSError:  # Linux reports the end of a terminal so
        pass
    os.close(leader)
    return text.decode()


COLOR = re.compile(r"\x1b\[[0-9;]*3[0-7]m")


def test_colors_are_for_terminals_that_want_them():
    assert COLOR.search(on_a_terminal("sync", "--help"))
    assert not COLOR.search(on_a_terminal("sync", "--help", NO_COLOR="1"))
    assert "\x1b" not in mixopt("sync", "--help").out


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (45.4, "45 s"), (192, "3.2 min"), (3569, "59.5 min"), (3599, "1 h"), (4320, "1 h 12 min"),
     (86_400, "1 d"), (183_600, "2 d 3 h")],
)  # fmt: skip
def test_durations_are_in_units_that_people_use(seconds, words):
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 FLOP"), (999.4, "999 FLOP"), (999.9, "1 kFLOP"), (3.41e11, "341 GFLOP"), (3.4e15, "3.4 PFLOP")],
)
def test_operations_are_counted_with_prefixes(count, words):
    assert flop(count) == words
