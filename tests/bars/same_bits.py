"""Every learner in three processes, one that compiles, one that loads, one that can write no cache: the same bits?

python tests/bars/same_bits.py [--learners NAME ...]    about ten minutes on two cores; exit code 1 where two differ
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent)]
from learners import LEARNERS  # noqa: E402


def learn(cache: str, names: list[str]) -> dict[str, str]:
    """Digest of what each learner learned, in a process of its own."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": cache, "PYTHONPATH": str(TESTS.parent)}
    command = [sys.executable, str(TESTS / "learners.py"), *names]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return dict(line.split() for line in done.stdout.splitlines())


def main() -> int:
    """Compare, print a line for each learner."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--learners", nargs="+", choices=LEARNERS, default=list(LEARNERS), metavar="NAME")
    names = parser.parse_args().learners
    with tempfile.TemporaryDirectory() as cache:
        compiled = learn(cache, names)
        loaded = learn(cache, names[::-1])
    in_memory = learn("/dev/null/nowhere", names[::-1])
    different = [name for name in names if not compiled[name] == loaded[name] == in_memory[name]]
    for name in names:
        print(f"{name:32} {compiled[name]}  {'differs' if name in different else 'the same'}")
    print(f"{len(names) - len(different)} of {len(names)} learners are the same in all three processes")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
