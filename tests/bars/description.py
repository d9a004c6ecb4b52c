"""Try a service by its OpenAPI description: requests that it allows and requests that it forbids.

The test suite does so with a dozen requests for each operation; here it is --examples.
"""

import argparse
import os
import sys
from pathlib import Path

import pytest

TEST = Path(__file__).parents[1] / "valueapprox" / "service" / "test_service_api.py"


def main():
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=300, help="requests for each operation (default: 300)")
    os.environ["VALUEAPPROX_EXAMPLES"] = str(parser.parse_args().examples)
    return pytest.main([str(TEST), "-q", "-k", "description_says"])


if __name__ == "__main__":
    sys.exit(main())
