"""Does a run go on, and learn the same, when one of the two nodes of its Ray cluster is lost?

python tests/bars/node_loss.py [--only run | result | sweep]    about two minutes

Exit code 1 where weights differ, or nothing was lost.
"""

import argparse
import hashlib
import os
import sys
import tempfile
from pathlib import Path

os.environ["RAY_AUTH_MODE"] = "disabled"  # read when Ray is imported

import numpy as np
import ray
from ray.cluster_utils import Cluster

from valueapprox.agents.batch_run import BatchRun, BatchSettings, make_experience
from valueapprox.agents.rollout import make_environment
from valueapprox.agents.sweeps import Store, Sweep
from valueapprox.cluster import RayWorker

SETTINGS = BatchSettings.from_dict(
    {"agent": "ppo", "env": "CartPole-v1", "envs": 4, "hidden": (8,), "rollout": 1000, "minibatch": 1000, "epochs": 1}
    | {"steps": 40_000, "log_every": 4000}
)  # fmt: skip


def digest(run: BatchRun) -> str:
    """Of all that was learned."""
    state = {name: array for name, array in run.agent.state_dict().items() if not name.endswith("/stats")}
    return hashlib.sha256(b"".join(np.ascontiguousarray(state[name]).tobytes() for name in sorted(state))).hexdigest()


class Nodes:
    """A head without work, and two nodes of two CPUs each, all on this machine."""

    def __init__(self):
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self.nodes = [self.cluster.add_node(num_cpus=2) for _ in range(2)]
        ray.init(address=self.cluster.address, log_to_driver=False, logging_level="ERROR")

    def lose(self, worker):
        """Kill the node that a worker is on, with all of its processes."""
        lost = next(node for node in self.nodes if node.node_id == node_of(worker))
        self.nodes.remove(lost)
        self.cluster.remove_node(lost, allow_graceful=False)

    def close(self):
        ray.shutdown()
        self.cluster.shutdown()


def node_of(worker):
    """The number of the node that a worker is on."""
    return ray.get(worker._actor.__ray_call__.remote(lambda host: ray.get_runtime_context().get_node_id()))


def lose_one_in_a_run(folder: Path, fine: str) -> bool:
    """The node of a worker is lost between two rounds: both workers go on, on the other."""
    nodes, said, on = Nodes(), [], []
    try:
        run = BatchRun(SETTINGS, folder, notice=said.append)

        def lose(point):
            if run.step == 12_000:
                nodes.lose(run.workers[0])
            elif run.step == 32_000:
                on.extend(node_of(worker) for worker in run.workers)

        run.train(2, callbacks=[lose])
    finally:
        nodes.close()
    print("\n".join(said))
    print(f"with a node lost: {digest(run)[:16]}, without: {fine[:16]}; workers at the end on {len(set(on))} node")
    return digest(run) == fine and len(set(on)) == 1 and bool(said)


def lose_one_with_a_result() -> bool:
    """A node is lost that holds a result which nobody has fetched yet: it is computed again."""
    nodes, said = Nodes(), []
    policy = SETTINGS.make_agent(make_environment(SETTINGS.env)).policy()
    expected, _ = make_experience(SETTINGS, [0, 1]).collect(5000, policy)
    worker = RayWorker(make_experience, SETTINGS, [0, 1], on_death=said.append)
    try:
        worker.submit("collect", 5000, policy)
        ray.wait([worker._open[0][0]], fetch_local=False, timeout=100)
        nodes.lose(worker)
        rollout, _ = worker.result()
    finally:
        nodes.close()
    print("\n".join(said))
    same = all((a == b).all() for a, b in zip(rollout, expected, strict=True))
    print(f"a result that was lost with its node: {'the same' if same else 'another one'}")
    return same and bool(said)


def lose_one_in_a_sweep(folder: Path) -> bool:
    """A node is lost while four workers on two nodes measure cells: two go on, and the store is the same."""
    fixed = {"env": "valueapprox/CartPole-v1", "agent": "stream-ac", "steps": 20_000}
    sweep = Sweep(fixed, {"lam": [0.0, 0.5, 0.8, 0.9]}, seeds=40)
    sweep.run(folder / "fine")
    nodes, said = Nodes(), []
    try:

        def lose(status):
            if status.done >= 40 and len(nodes.nodes) == 2:
                nodes.cluster.remove_node(nodes.nodes.pop(), allow_graceful=False)

        sweep.run(folder / "lost", workers=4, notice=said.append, progress=lose)
    finally:
        nodes.close()
    print("\n".join(said))
    stores = []
    for name in ("fine", "lost"):
        with Store(folder / name, read_only=True) as store:
            stores.append([(row.cell, row.result.numbers, row.result.curve.tobytes()) for row in store.rows()])
    same = stores[0] == stores[1]
    print(f"a sweep of {len(stores[0])} cells that lost a node: {'the same' if same else 'another'} store")
    return same and bool(said)


def main() -> int:
    """All ways to lose a node, or one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("run", "result", "sweep"))
    only = parser.parse_args().only
    results = []
    with tempfile.TemporaryDirectory() as folder:
        if only in (None, "run"):
            fine = BatchRun(SETTINGS, Path(folder) / "fine")
            fine.train(0)
            results.append(lose_one_in_a_run(Path(folder) / "run", digest(fine)))
        if only in (None, "result"):
            results.append(lose_one_with_a_result())
        if only in (None, "sweep"):
            results.append(lose_one_in_a_sweep(Path(folder)))
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
