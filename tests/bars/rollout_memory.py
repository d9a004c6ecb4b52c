"""Do rounds of rollouts on Ray workers leave memory flat, in this process, on the workers and in Ray's object store?

python tests/bars/rollout_memory.py [--rounds 500]    about two minutes on two cores; exit code 1 where memory grows
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

os.environ["RAY_AUTH_MODE"] = "disabled"  # read when Ray is imported

import ray
from ray._private.internal_api import node_stats

from valueapprox.agents.batch_run import BatchRun, BatchSettings
from valueapprox.cluster import cluster

N_ENVS, N_STEPS = 4, 2048  # of a rollout: 0.5 MB
ALLOWED = 8.0  # MB; rollouts that are kept are 17 MB in 35 rounds
STORE = 40.0  # MB in the object store at once; a round brings 0.5


def private(pid: int | str) -> float:
    """Memory of a process that is its own, in MB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))


def stored() -> float:
    """What the object store holds, in MB."""
    node = ray.nodes()[0]
    return node_stats(node["NodeManagerAddress"], node["NodeManagerPort"]).store_stats.object_store_bytes_used / 2**20


def main() -> int:
    """Measure after every tenth of the rounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=500)
    rounds = parser.parse_args().rounds
    size = N_ENVS * N_STEPS
    settings = BatchSettings.from_dict(
        {"agent": "ppo", "env": "valueapprox/CartPole-v1", "envs": N_ENVS, "hidden": (8,), "rollout": N_STEPS}
        | {"minibatch": size, "epochs": 1, "steps": rounds * size, "log_every": max(1, rounds // 10) * size}
    )  # fmt: skip
    found = []
    with cluster(None, 2), tempfile.TemporaryDirectory() as folder:
        run = BatchRun(settings, Path(folder) / "run")

        def look(point):
            if run.step < settings.steps:  # then the workers have ended
                found.append([private("self"), *(private(worker.pid()) for worker in run.workers), stored()])
                shown = "  ".join(f"{number:7.1f}" for number in found[-1])
                print(f"after {run.step // size:4} rounds, MB here, on two workers, in the store: {shown}", flush=True)

        run.train(2, callbacks=[look])
    first, last = found[len(found) // 3], found[-1]
    grown = [after - before for before, after in zip(first[:-1], last[:-1], strict=True)]
    fullest = max(row[-1] for row in found)
    flat = max(grown) < ALLOWED and fullest < STORE
    print(f"grown by {max(grown):.1f} MB (at most {ALLOWED:g}), store {fullest:.1f} MB (at most {STORE:g})")
    return 0 if flat else 1


if __name__ == "__main__":
    sys.exit(main())
