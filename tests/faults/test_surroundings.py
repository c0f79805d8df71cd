"""What a study depends on fails: the disk is full, the MLflow server dies."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager, suppress

import pytest

from .processes import SECONDS, command_line, events_of, kill_group, wait_until
from .real import write_study
from .synthetic import outcome

pytestmark = pytest.mark.faults

DISK = """
mount -t tmpfs -o size=320m tmpfs {disk} || exit 77
{run} 2> {log}.1 > /dev/null &
driver=$!
until grep -q '"type": "result"' {disk}/run/study.jsonl 2> /dev/null; do sleep 0.02; done
cat /dev/zero > {disk}/filler 2> /dev/null
wait $driver; echo "first $?" > {log}.codes
cp {disk}/run/study.jsonl {log}.ledger
rm {disk}/filler
{run} 2> {log}.2 > /dev/null; echo "second $?" >> {log}.codes
cp {disk}/run/study.jsonl {done}/study.jsonl
"""


def test_a_full_disk_stops_the_study_cleanly_and_it_goes_on_once_there_is_room(fault, real, tmp_path):
    root, undisturbed = real
    path, disk, done, log = write_study(root), tmp_path / "disk", tmp_path / "done", tmp_path / "log"
    disk.mkdir()
    done.mkdir()
    run = f"{sys.executable} -m mixopt.experiments.cli run {path} --dir {disk}/run"
    script = DISK.format(run=run, disk=disk, log=log, done=done)
    with fault("disk full during a run (a real tmpfs filled to the last byte)") as told:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        command = ["unshare", "-rm", "sh", "-c", script]
        answer = subprocess.run(command, cwd=root, env=environment, timeout=2 * SECONDS, check=False)
        if answer.returncode == 77:
            pytest.skip("no file system may be mounted here")
        assert (tmp_path / "log.codes").read_text().split() == ["first", "1", "second", "0"]
        said = (tmp_path / "log.1").read_text()
        assert said.count("error: ") == 1
        assert "no disk space left to write" in said
        assert "free some and run the same command again" in said
        assert "Traceback" not in said
        assert outcome(done) == undisturbed
        told.details.append("exit code 1, one message; the same command went on")


@contextmanager
def mlflow_server(folder, port):
    """Run an MLflow server on a SQLite store; killed with all its workers at the end."""
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db",
               "--artifacts-destination", str(folder / "artifacts"), "--host", "127.0.0.1", "--port", str(port)]  # fmt: skip
    with (folder / "server.log").open("a") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_until(lambda: _healthy(port), process)
        yield process
    finally:
        kill_group(process)


def _healthy(port):
    with suppress(OSError):
        return urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).status == 200
    time.sleep(0.2)
    return False


def shown(uri, name="small"):
    """Return {trial: (status, histories)} of all runs of an experiment, and how many runs there are."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name(name).experiment_id], max_results=1000)
    found = {
        run.data.tags.get("mixopt.trial", "study"): (
            run.info.status,
            {k: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, k)] for k in run.data.metrics},
        )
        for run in runs
    }
    return found, len(runs)


@pytest.mark.mlflow
def test_an_mlflow_server_that_dies_costs_a_warning_and_sync_catches_up(fault, real, tmp_path):
    root, undisturbed = real
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    path, directory, log = write_study(root, "tracked.yaml", tracking_uri=uri), tmp_path / "run", tmp_path / "err"
    with fault("kill -9 of the MLflow server while runs are logged") as told:
        with (
            mlflow_server(tmp_path, port) as server,
            command_line("run", path, "--dir", directory, cwd=root, log=log) as process,
        ):
            wait_until(lambda: events_of(directory, "result") >= 3, process)
            os.killpg(server.pid, signal.SIGKILL)
            kill_group(server)
            assert process.wait(SECONDS) == 0, log.read_text()
        assert log.read_text().count("tracking stopped") == 1
        assert "mixopt sync" in log.read_text()
        assert outcome(directory) == undisturbed
        with mlflow_server(tmp_path, port):
            for i in range(2):
                with command_line("sync", directory, cwd=root, log=tmp_path / f"sync{i}.err") as process:
                    assert process.wait(SECONDS) == 0, (tmp_path / f"sync{i}.err").read_text()
            found, num_runs = shown(uri)
        assert num_runs == len(found) == len(undisturbed[1]) + 1
        assert {status for status, _ in found.values()} == {"FINISHED"}
        repeated = [
            k for _, history in found.values() for k, points in history.items() if len(set(points)) < len(points)
        ]
        assert repeated == []
        told.details.append(f"{num_runs} runs after two syncs, none and no point twice")
