"""A head of two CPUs and a node of two; a line on stdin loses the node and adds a new one."""

from __future__ import annotations

import sys

from ray.cluster_utils import Cluster

SIZE = {"num_cpus": 2, "object_store_memory": 100_000_000}


def main() -> None:
    cluster = Cluster(initialize_head=True, head_node_args={**SIZE, "include_dashboard": False})
    node = cluster.add_node(**SIZE)
    print(f"address={cluster.address}", flush=True)  # noqa: T201
    for _ in sys.stdin:
        cluster.remove_node(node, allow_graceful=False)
        print("lost", flush=True)  # noqa: T201
        node = cluster.add_node(**SIZE, wait=False)


if __name__ == "__main__":
    main()
