"""A study on a Ray cluster of several nodes that do not see its run directory."""

import pytest
import yaml
from ray.cluster_utils import Cluster

from tests.e2e.command_line import mixopt, mixopt_process
from tests.e2e.studies import ledger, small_study


@pytest.mark.slow
@pytest.mark.ray
def test_nodes_that_do_not_see_the_run_directory_give_the_ledger_of_one_process(tmp_path):
    path = small_study(tmp_path, search={"batch_size": 2, "budget": 2}, validation={"seeds": 1})
    assert mixopt("run", path, "--dir", tmp_path / "home").code == 0
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        study = yaml.safe_load(path.read_text())
        study["run"] |= {"executor": "ray", "address": cluster.address, "storage": "ray"}
        path.write_text(yaml.safe_dump(study, sort_keys=False))
        done = mixopt_process("run", path, "--dir", tmp_path / "apart", cwd=tmp_path, seconds=300)
    finally:
        cluster.shutdown()
    assert done.code == 0, done.err
    assert ledger(tmp_path / "apart") == ledger(tmp_path / "home")
    assert {item.name for item in (tmp_path / "apart").iterdir()} >= {"experts", "scores", "trials", "mixture.yaml"}
