"""Does a sweep lose or double anything when its processes are killed at any time?

python tests/bars/sweep_kills.py [--kills 20] [--only worker | driver]    about six minutes

A sweep runs undisturbed; then again while its Ray workers are killed one after the other; then again and again, its own
process killed each time, until it is done. Every store must then equal the undisturbed one, row by row, seconds and
machine apart; and at each death of the driver, what was recorded before must still be there, as it was.

Exit code 1 where it is not.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ["RAY_AUTH_MODE"] = "disabled"  # read when Ray is imported

from valueapprox.agents.sweeps import Store, Sweep

COMMAND = [sys.executable, str(Path(__file__).parents[2] / "scripts" / "sweep.py")]
FIXED = {"env": "valueapprox/CartPole-v1", "agent": "td", "steps": 20_000, "optimizer": "sgd", "schedule": "constant"}
GRID = {"alpha": [1e-4, 3e-4, 1e-3, 1e-2], "lam": [0.0, 0.5, 0.8, 0.95]}
SEEDS = 60
WORDS = [
    *(word for name, value in FIXED.items() for word in (f"--{name}", str(value))),
    *(word for name, values in GRID.items() for word in (f"--{name}", *map(str, values))),
    *("--seeds", str(SEEDS), "--workers", "2", "--quiet"),
]


def recorded(folder: Path) -> dict[str, tuple[object, ...]]:
    """Every result by its digest, seconds, attempts and machine apart."""
    with Store(folder, read_only=True) as store:
        rows = store.rows()
    return {
        row.cell.digest: (row.number, row.result.status, row.result.numbers, row.result.curve.tobytes())
        for row in rows
        if row.result is not None
    }


def undisturbed(folder: Path) -> dict[str, tuple[object, ...]]:
    """The sweep as it should be."""
    Sweep(FIXED, GRID, seeds=SEEDS).run(folder, workers=2)
    return recorded(folder)


def start(folder: Path) -> subprocess.Popen:
    """The command, in a session of its own."""
    return subprocess.Popen(
        [*COMMAND, *WORDS, "--out", str(folder)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )


def workers_of(process: subprocess.Popen) -> list[int]:
    """Ray's workers that measure cells for a driver: of its session."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            session = int((path / "stat").read_text().rpartition(")")[2].split()[3])
            if session == os.getsid(process.pid) and b"_Measurer" in (path / "cmdline").read_bytes():
                found.append(int(path.name))
        except (OSError, ValueError, IndexError):
            continue
    return found


def kill_workers(folder: Path, kills: int) -> int:
    """Run it once while workers die; returns how many did."""
    process, done = start(folder), 0
    while process.poll() is None:
        time.sleep(random.uniform(0.2, 1.5))
        if done < kills and process.poll() is None and (workers := workers_of(process)):
            os.kill(random.choice(workers), signal.SIGKILL)
            done += 1
    if process.returncode:
        print(process.stderr.read())
    return done


def kill_driver(folder: Path, kills: int) -> tuple[int, int]:
    """Run it until it is done, killed so many times; returns how often it died, and how many results were lost then."""
    deaths = lost = 0
    before: dict[str, tuple[object, ...]] = {}
    while True:
        process = start(folder)
        if deaths < kills:
            begun, n, wait = time.monotonic(), len(before), random.uniform(0.0, 3.0)
            # Not only while Ray starts: half of the deaths come once new results are being written.
            while process.poll() is None and time.monotonic() - begun < 60:
                time.sleep(0.05)
                there = (folder / "sweep.sqlite").exists()
                if deaths % 2 or (there and len(_settled(folder)) > n):
                    break
            time.sleep(wait)
            if process.poll() is None:
                process.kill()
                deaths += 1
        process.wait()
        if (folder / "sweep.sqlite").exists():
            now = recorded(folder)
            lost += sum(now.get(digest) != result for digest, result in before.items())
            before = now
        if process.returncode == 0:
            return deaths, lost


def _settled(folder: Path) -> set[str]:
    try:
        with Store(folder, read_only=True) as store:
            return store.settled()
    except FileNotFoundError:  # it is being made
        return set()


def show(found: dict[str, tuple[object, ...]], right: dict[str, tuple[object, ...]]) -> None:
    """In which rows a store differs."""
    differing = [digest for digest in {*found, *right} if found.get(digest) != right.get(digest)]
    for digest in differing[:10]:
        print(f"  {digest}: {found.get(digest, ())[:3]} instead of {right.get(digest, ())[:3]}")


def main() -> int:
    """Run all; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--only", choices=("worker", "driver"))
    options = parser.parse_args()
    random.seed(0)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        right = undisturbed(folder / "right")
        print(f"undisturbed: {len(right)} cells")
        ok = True
        if options.only != "driver":
            n = kill_workers(folder / "workers", options.kills)
            same = recorded(folder / "workers") == right
            print(f"{n} workers killed: the store {'equals' if same else 'DIFFERS FROM'} the undisturbed one")
            show(recorded(folder / "workers"), right)
            ok &= same and n > 0
        if options.only != "worker":
            deaths, lost = kill_driver(folder / "driver", options.kills)
            same = recorded(folder / "driver") == right
            print(
                f"the driver killed {deaths} times: {lost} recorded results lost or changed; the store "
                f"{'equals' if same else 'DIFFERS FROM'} the undisturbed one"
            )
            show(recorded(folder / "driver"), right)
            ok &= same and lost == 0 and deaths == options.kills
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
