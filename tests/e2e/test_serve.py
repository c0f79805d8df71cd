"""`mixopt serve` as a process of its own: started, called, signalled, killed, restarted."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from mixopt.experiments.client import Client
from mixopt.experiments.external import ExternalStudy
from mixopt.storage import RunDirectory
from mixopt.study import Study
from tests.e2e.command_line import mixopt, small_study
from tests.unit.experiments.http_service import served

ROOT = Path(__file__).parents[2]
TOKEN = "a-token-of-the-tests-0123456789"


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MIXOPT_TOKEN", raising=False)


def study_file(folder, **fields):
    study = {
        "name": "mine",
        "trainer": "external",
        "domains": ["web", "code", "books"],
        "objective": "mean(loss/*)",
        "ladder": {"60m": 1, "1b": 40},
        "search": {"optimizer": "random"},
        **fields,
    }
    path = folder / "my-mixture.yaml"
    path.write_text(yaml.safe_dump(study, sort_keys=False))
    return path


@contextlib.contextmanager
def process(study, *words, environment=None, log=None):
    """Start `mixopt -v serve`; yields the process and what it printed, and ends it."""
    command = [
        sys.executable,
        "-m",
        "mixopt.experiments.cli",
        "-v",
        "serve",
        str(study),
        "--port",
        "0",
        "--json",
        *words,
    ]
    with (log or Path("serve.log")).open("w") as errors:
        server = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
        )  # fmt: skip
        try:
            yield server, json.loads("".join(server.stdout.readline() for _ in range(5)))
        finally:
            server.kill()
            server.wait()
            server.stdout.close()


def refused(answer, code, *parts):
    assert (answer.code, answer.out) == (code, ""), answer.err
    assert [part for part in parts if part not in answer.err] == [], answer.err


def test_a_service_lives_through_signals_and_kills_and_keeps_its_token_to_itself(tmp_path):
    study = study_file(tmp_path)
    environment = {"MIXOPT_TOKEN": TOKEN}
    with process(study, environment=environment) as (server, said):
        assert (said["study"], said["token_needed"]) == ("mine", True)
        client = Client(said["url"], TOKEN)
        first = client.suggest(2, request="k")
        client.tell(first[0]["run"], losses={"chat": 2.0})
        # The command line takes turns with the service on the same ledger.
        (tmp_path / "own.csv").write_text("run,fidelity,weight/web,loss/chat\nown,1b,1,2.5\n")
        assert mixopt("tell", study, "--runs", "own.csv").code == 0
        assert {run["run"] for run in client.runs("done")} == {first[0]["run"], "own"}
        server.kill()
        server.wait()
    with process(study, environment=environment, log=tmp_path / "again.log") as (server, said):
        client = Client(said["url"], TOKEN)
        assert client.suggest(2, request="k") == first
        assert client.tell(first[0]["run"], losses={"chat": 2.0})["already_known"] == [first[0]["run"]]
        server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=60) == 0
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert RunDirectory(tmp_path / "runs" / "mine").ledger in written
    assert [path for path in written if TOKEN in path.read_text(errors="replace")] == []
    assert "serve stopped" in (tmp_path / "again.log").read_text()


@pytest.mark.faults
def test_sigterm_lets_the_call_that_runs_finish(tmp_path):
    study = study_file(tmp_path, search={"optimizer": "mfbo"})
    with process(study) as (server, said), ThreadPoolExecutor(1) as pool:
        client = Client(said["url"])
        for run in client.suggest(8):
            client.tell(run["run"], losses={"chat": 2.0 + run["weights"]["web"]})
        last = pool.submit(client.suggest, 4)
        # The service is busy as soon as it lets nobody else at the ledger.
        while not _held(tmp_path / "runs" / "mine") and not last.done():
            pass
        server.send_signal(signal.SIGTERM)
        runs = [run["run"] for run in last.result(timeout=120)]
        assert server.wait(timeout=60) == 0
    assert [trial.id for trial in Study(tmp_path / "runs" / "mine").history().pending] == runs


def _held(directory):
    try:
        with RunDirectory(directory).locked():
            return False
    except RuntimeError:
        return True


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "trainer.example"])
def test_beyond_this_machine_a_token_is_needed(tmp_path, host):
    answer = mixopt("serve", study_file(tmp_path), "--host", host)
    refused(answer, 2, f"--host: {host} is reachable by others", "--token-file", "MIXOPT_TOKEN", "token_urlsafe")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("token", "shown"), [("", "got 0 characters"), ("short", "got 5 characters"), ("with space " * 3, "without spaces"),
                         ("é" * 20, "printable ASCII")],
)  # fmt: skip
def test_a_weak_token_is_refused_without_being_shown(tmp_path, token, shown):
    Path("token.txt").write_text(token)
    answer = mixopt("serve", study_file(tmp_path), "--token-file", "token.txt")
    refused(answer, 2, "--token-file", shown)
    assert not token or token not in answer.err


def test_what_cannot_be_served_is_refused_before_anything_is_begun(tmp_path):
    study = study_file(tmp_path)
    refused(mixopt("serve", study, "--token-file", "none.txt"), 2, "cannot read none.txt", "correct the path")
    refused(mixopt("serve", "none.yaml"), 2, "no study file at none.yaml")
    refused(mixopt("serve", small_study(tmp_path)), 2, "mixopt trains its runs itself; use mixopt run")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        refused(mixopt("serve", study, "--port", taken.getsockname()[1]), 1, "cannot listen", "choose another --port")
    assert not (tmp_path / "runs").exists()


def test_a_study_that_another_process_begins_differently_is_not_served(tmp_path):
    study = study_file(tmp_path)
    assert mixopt("suggest", study, "-n", 1).code == 0
    refused(mixopt("serve", study_file(tmp_path, domains=["web", "law"]), "--port", 0), 2, "domain law is new")


def blocks(language):
    page = (ROOT / "docs" / "serve.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)


def test_the_examples_of_the_page_work_as_they_stand(tmp_path, capsys):
    with served(ExternalStudy.open(study_file(tmp_path))) as service:
        (example,) = blocks("python")
        exec(compile(example.replace("http://127.0.0.1:8765", service.url), "serve.md", "exec"), {})  # the page is ours
        assert "'web'" in capsys.readouterr().out
        assert service.get("/status").data["runs"]["done"] == 4
        if shutil.which("curl") is None:
            return
        commands = next(block for block in blocks("sh") if "curl" in block).strip().splitlines()
        for command in commands:
            line = command.replace("http://127.0.0.1:8765", service.url)
            done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
            assert "error" not in json.loads(done.stdout), (command, done.stdout)
        assert len(commands) == 6
