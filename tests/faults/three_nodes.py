"""A head of two CPUs and two nodes of one, told on stdin what to do.

``address`` prints the head's address, ``lose`` kills a node and adds a new one, ``whole`` waits
until all are up and prints how many there are.
"""

from __future__ import annotations

import sys

from ray.cluster_utils import Cluster

MEMORY = {"object_store_memory": 100_000_000}


def main() -> None:
    head = {"num_cpus": 2, "include_dashboard": False, **MEMORY}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes = [cluster.add_node(num_cpus=1, **MEMORY, wait=False) for _ in range(2)]
    for line in sys.stdin:
        if line.strip() == "lose":
            cluster.remove_node(nodes.pop(0), allow_graceful=False)
            answer = "lost"
        elif line.strip() == "whole":
            cluster.wait_for_nodes()
            answer = str(len(cluster.list_all_nodes()))
        else:
            answer = cluster.address
        print(answer, flush=True)  # noqa: T201
        if answer == "lost":
            nodes.append(cluster.add_node(num_cpus=1, **MEMORY, wait=False))


if __name__ == "__main__":
    main()
