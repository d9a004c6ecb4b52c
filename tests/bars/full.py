"""The combinations that `make test` leaves out: optimizers, types of weights and activations, each with each other.

Each of them is compiled for seconds, and its parts are tested in other combinations. `pytest --full` runs all tests.
"""

import argparse
import sys
from pathlib import Path

import pytest


def main():
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    return pytest.main([str(Path(__file__).parents[1]), "-q", "--full", "-m", "full"])


if __name__ == "__main__":
    sys.exit(main())
