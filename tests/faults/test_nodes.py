"""Nodes of a cluster that die, and nodes with a network and files of their own."""

import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager

import pytest
from ray.cluster_utils import Cluster

from tests.e2e.studies import ledger

from .processes import SECONDS, command_line, events_of, kill_group, wait_until
from .real import checkpoints, write_study
from .synthetic import outcome

pytestmark = [pytest.mark.faults, pytest.mark.ray]

HEAD, NODE, PORT, SPACE = "10.77.7.1", "10.77.7.2", 6397, "mixopt-test"


@pytest.fixture
def cluster():
    """A head without CPUs and two nodes of one."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    cluster.workers = [cluster.add_node(num_cpus=1) for _ in range(2)]
    yield cluster
    cluster.shutdown()


@pytest.mark.parametrize("storage", ["store", "ray", "shared"])
def test_a_node_that_dies_in_training_loses_nothing(fault, real, tmp_path, cluster, storage):
    root, undisturbed = real
    place = f"file://{tmp_path}/store" if storage == "store" else storage
    path = write_study(root, executor="ray", address=cluster.address, storage=place)
    directory, log = tmp_path / "run", tmp_path / "err"
    with fault(f"a node of a cluster killed in training, files by {storage}"):
        with command_line("run", path, "--dir", directory, cwd=root, log=log) as process:
            begun = {
                "store": lambda: list((tmp_path / "store").glob("*/checkpoints/*.json")),
                "ray": lambda: events_of(directory, "status"),
                "shared": lambda: checkpoints(directory),
            }
            wait_until(begun[storage], process)
            cluster.remove_node(cluster.workers[0], allow_graceful=False)
            assert process.wait(SECONDS) == 0, log.read_text()
        assert outcome(directory) == undisturbed


@contextmanager
def separate_node(hidden):
    """A Ray head here and a node in another network that sees neither `hidden` nor the head's files."""

    def shell(*lines):
        return subprocess.run(["sh", "-ec", "\n".join(lines)], capture_output=True, text=True, check=False)

    link = (
        f"ip netns add {SPACE}",
        "ip link add mxhead type veth peer name mxnode",
        f"ip link set mxnode netns {SPACE}",
        f"ip addr add {HEAD}/24 dev mxhead",
        "ip link set mxhead up",
        f"ip netns exec {SPACE} ip addr add {NODE}/24 dev mxnode",
        f"ip netns exec {SPACE} ip link set mxnode up",
        f"ip netns exec {SPACE} ip link set lo up",
    )
    if os.getuid() or not shutil.which("ip") or shell(*link).returncode:
        pytest.skip("needs root and the kernel's namespaces")
    ray = f"{sys.executable} -m ray.scripts.scripts"
    # A folder of its own: a head leaves its address in the common one. Short, as sockets lie in it.
    folder = tempfile.mkdtemp(prefix="mx", dir="/tmp")
    started = []
    os.environ["RAY_AUTH_MODE"] = "token"
    try:
        # `--block` keeps both in process groups of ours: `ray stop` would end every Ray of this machine.
        for command in (
            f"exec {ray} start --head --block --node-ip-address={HEAD} --port={PORT} --num-cpus=0 "
            f"--include-dashboard=false --temp-dir={folder}",
            f"exec ip netns exec {SPACE} unshare -m sh -ec '"
            f"mount -t tmpfs none {hidden}; mount -t tmpfs none {folder}; "
            f"until {ray} start --address={HEAD}:{PORT} --node-ip-address={NODE} --num-cpus=2 --block; do sleep 1; done'",
        ):
            started.append(
                subprocess.Popen(
                    ["sh", "-c", command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
                )
            )
        yield f"{HEAD}:{PORT}"
    finally:
        del os.environ["RAY_AUTH_MODE"]
        for process in started:
            kill_group(process)
        shutil.rmtree(folder, ignore_errors=True)
        shell(f"ip netns pids {SPACE} | xargs -r kill -9", f"ip netns del {SPACE}")


def test_a_node_with_network_and_files_of_its_own_gives_the_same_ledger(fault, real, tmp_path):
    root, _ = real
    directory, log = root / "separate", tmp_path / "err"
    with (
        fault("a node in another network and file system, cluster with a token") as told,
        separate_node(root) as address,
    ):
        path = write_study(root, executor="ray", address=address, autoscaling=True)
        with command_line("run", path, "--dir", directory, cwd=root, log=log) as process:
            assert process.wait(SECONDS) == 0, log.read_text()
        assert ledger(directory) == ledger(root / "undisturbed")
        assert list(directory.glob("trials/*/state.safetensors"))
        told.details.append("the ledger of one process, event for event")
