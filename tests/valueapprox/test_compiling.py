"""The kernels' cache notices every edit and needs no place to write; importing the package loads little."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CACHES = ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME", "HOME", "TMPDIR", "TEMP", "TMP")


def python(code, root=ROOT, **environment):
    """The words that `code` prints in a fresh process that finds the package in `root` and none of our caches."""
    kept = {name: value for name, value in os.environ.items() if name not in (*CACHES, "PYTHONPATH")}
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**kept, "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1", **environment},
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.split()


# leaky_relu(-1) = -LEAK, by the kernel of a file (activations) that the called kernel's file (backprop) imports.
LEAKY = """
import valueapprox
from valueapprox import Network, compiling
net = Network((1, 1), output="leaky_relu", bias=False, dtype="float64")
print(valueapprox.__file__, compiling.cache_is_warm(), compiling.cache_folder(), net.forward([1.0], [-1.0])[0])
"""


def test_an_edited_kernel_is_compiled_anew_and_an_unedited_one_is_not(tmp_path):
    shutil.copytree(ROOT / "valueapprox", tmp_path / "valueapprox", ignore=shutil.ignore_patterns("__pycache__"))
    source = tmp_path / "valueapprox" / "nn" / "activations.py"
    cache = {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    path, warm, first_folder, value = python(LEAKY, tmp_path, **cache)
    assert Path(path) == tmp_path / "valueapprox" / "__init__.py"
    assert (warm, float(value)) == ("False", -0.01)
    assert Path(first_folder).parents[1] == tmp_path / "cache"

    path, warm, folder, value = python(LEAKY, tmp_path, **cache)
    assert (warm, folder, float(value)) == ("True", first_folder, -0.01)

    text = source.read_text()
    assert "LEAK = 0.01" in text
    source.write_text(text.replace("LEAK = 0.01", "LEAK = 0.25"))
    path, warm, folder, value = python(LEAKY, tmp_path, **cache)
    assert (warm, float(value)) == ("False", -0.25)
    assert folder != first_folder


WORKS = "import numpy as np; from valueapprox import Network, compiling; "
WORKS += "print(compiling.cache_folder(), Network((1, 1), bias=False, dtype='float64').forward([2.0], [3.0])[0])"
NOWHERE = "/dev/null/nowhere"
INTERPRETED = {"NUMBA_DISABLE_JIT": "1"}  # where it matters only that a cache is looked for


def test_without_a_place_to_write_kernels_are_compiled_in_memory():
    folder, value = python(WORKS, NUMBA_CACHE_DIR=NOWHERE)
    assert (folder, float(value)) == ("None", 6.0)


@pytest.mark.parametrize(
    ("setup", "environment"),
    [
        ("", {"HOME": NOWHERE, "XDG_CACHE_HOME": NOWHERE, "TMPDIR": NOWHERE}),
        # No folder for temporary files at all, as in a read-only container.
        ("import tempfile; tempfile._candidate_tempdir_list = lambda: ['/dev/null/x']; ", {"HOME": NOWHERE}),
        # A user without a name or a home, as in a container that is run with any number for a user.
        ("import pwd; pwd.getpwuid = {}.__getitem__; ", {}),
    ],
    ids=["unwritable", "no temporary folder", "no home"],
)
def test_without_a_home_it_imports_and_works(setup, environment):
    _, value = python(setup + WORKS, **INTERPRETED, **environment)
    assert float(value) == 6.0


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="POSIX permissions")
def test_a_cache_that_others_can_write_to_is_not_trusted(tmp_path):
    # It holds machine code.
    (tmp_path / "valueapprox").mkdir()
    (tmp_path / "valueapprox").chmod(0o777)
    folder, _ = python(WORKS, **INTERPRETED, NUMBA_CACHE_DIR=str(tmp_path))
    assert folder == "None"


HEAVY = (
    "ray",
    "tensorboard",
    "gymnasium",
    "fastapi",
    "matplotlib",
    "scipy.stats",
    "pandas",
    "torch",
    "jax",
    "rich",
    "tyro",
)


def test_importing_the_package_loads_numpy_and_the_compiler_only():
    loaded = python("import sys, valueapprox; print(*sys.modules)")
    assert {"numpy", "numba"} <= set(loaded)
    assert set(HEAVY) & set(loaded) == set()
    assert not [name for name in loaded if name.startswith(("valueapprox.envs", "valueapprox.agents"))]


# --- the same bits in every process ---------------------------------------------------------------------------------

LEARNERS = ROOT / "tests" / "learners.py"


def learn(cache, *names):
    """A process that learns in this order, with its compiled kernels in `cache`."""
    kept = {name: value for name, value in os.environ.items() if name not in CACHES}
    return subprocess.Popen(
        [sys.executable, str(LEARNERS), *names],
        env={**kept, "NUMBA_CACHE_DIR": str(cache), "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )


def digests(process):
    printed, _ = process.communicate(timeout=280)
    assert process.returncode == 0
    return dict(line.split() for line in printed.splitlines())


def test_a_process_that_compiles_learns_the_same_bits_as_one_that_loads(tmp_path):
    # Version 0.1 learned other bits where the kernels of "obgd" were compiled than where they were loaded. Here one
    # process compiles, one loads, and one compiles in another order with no folder to write to; the two kernels call
    # the same ones. (tests/bars/same_bits.py does so with every learner, agents and compiled loops too.)
    names = ("obgd", "obgd-one-by-one")
    compiled, in_memory = digests(learn(tmp_path, *names)), learn(NOWHERE, *names[::-1])
    loaded = digests(learn(tmp_path, *names))
    assert compiled == loaded == digests(in_memory)
    assert set(compiled) == set(names)
