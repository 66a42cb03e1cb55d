"""Carry out a study on a Ray cluster of two nodes of this machine: `two_nodes.py STUDY OUT`."""

import sys

from ray.cluster_utils import Cluster

from genmeasure.cli import main

if __name__ == "__main__":
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    study, out = sys.argv[1:]
    try:
        status = main(["run", study, "--out", out, "--engine", f"ray:{cluster.address}", "--device", "cpu"])
    finally:
        cluster.shutdown()
    raise SystemExit(status)
