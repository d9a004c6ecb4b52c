"""Do stream-ac's seeds find the goal? Version 0.1's 13 of 100 in MountainCar and 7 of 100 in Acrobot did not."""

import argparse
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import reproduce

from valueapprox.agents.control_run import complete
from valueapprox.statistics import interval_of_mean

#: World, steps, and the return that a seed which has found the goal exceeds.
TASKS = {
    "mountaincar": ("valueapprox/MountainCar-v0", 200_000, -199.99),
    "acrobot": ("valueapprox/Acrobot-v1", 50_000, -300.0),
}


def last_returns(task: str, seed: int) -> float:
    """The mean return of the last 15 % of a run with the defaults of `train.py`."""
    env, steps, _ = TASKS[task]
    settings = reproduce.experiment(env, "stream-ac", steps, (steps,), seed=seed).settings
    with tempfile.TemporaryDirectory() as folder:
        return reproduce.at(complete(settings, Path(folder) / "run"), steps)


def main() -> int:
    """Print the counts; the exit code is 1 if more than one seed of a hundred is stuck."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="1000:1100", help="FIRST:STOP (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    seeds, wrong = list(map(int, range(*map(int, options.seeds.split(":"))))), False
    with ProcessPoolExecutor(options.workers) as pool:
        for task, (env, steps, bound) in TASKS.items():
            returns = list(pool.map(last_returns, [task] * len(seeds), seeds))
            stuck = sum(not r > bound for r in returns)
            wrong |= stuck > len(seeds) / 100
            mean = interval_of_mean(returns)
            shown = f"mean {mean.value:.1f} ({mean.low:.1f} to {mean.high:.1f}), worst {min(returns):.0f}"
            print(f"{env} at {steps:,}: {shown}, stuck {stuck} of {len(seeds)}", flush=True)
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
