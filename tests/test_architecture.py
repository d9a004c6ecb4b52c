"""The house: imports run one way, the packages are ours, nothing unpickles, no file names a package registry."""

import ast
import importlib
import os
import re
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import pytest

ROOT = Path(__file__).parents[1]
ORDER = ("valueapprox", "envs", "agents", "scripts")  # each may import itself and those before it
FILES = [path.relative_to(ROOT) for folder in ORDER for path in sorted((ROOT / folder).rglob("*.py"))]


def imported(source):
    """Every module that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module


def backwards(folder, source):
    """The imports that run against the order."""
    later = ORDER[ORDER.index(folder) + 1 :]
    return [module for module in imported(source) if module.split(".")[0] in (*later, "tests")]


def test_an_import_that_runs_back_is_noticed():
    assert backwards("envs", "def f():\n    from agents.policies import x\n    import valueapprox, envs.a") == [
        "agents.policies"
    ]


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_run_one_way(path):
    assert backwards(path.parts[0], (ROOT / path).read_text()) == []


@pytest.mark.parametrize("path", FILES, ids=str)
def test_nothing_unpickles(path):
    source = (ROOT / path).read_text()
    unsafe = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    assert unsafe & {module.split(".")[0] for module in imported(source)} == set()
    assert not re.search(r"allow_pickle\s*=\s*True", source)


@pytest.mark.parametrize("name", ORDER[:3])
def test_the_packages_are_those_of_this_checkout(name):
    assert Path(importlib.import_module(name).__file__) == ROOT / name / "__init__.py"


def tracked_texts():
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listing.returncode:
        pytest.skip("not a git checkout")
    for name in filter(None, listing.stdout.split("\0")):
        path = ROOT / name
        if path.is_file() and b"\0" not in (content := path.read_bytes()):
            yield name, content.decode()


def test_no_file_names_a_package_registry():
    # An address that is right here is wrong elsewhere: pip and uv know theirs from their settings. A link for a reader
    # to a project's page is none.
    settings = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "UV_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX")
    words = " ".join(os.environ.get(name, "") for name in settings).split()
    hosts = {host for word in words if (host := urlsplit(word).hostname)}
    registry = re.compile(
        r"https?://[^\s\"'<>)]*(?:/simple\b|pythonhosted|artifactory|nexus|devpi)"
        r"|--(?:extra-)?index-url[= ]+\S*:|^\s*(?:extra-)?index-url\s*=|\[\[tool\.uv\.index\]\]",
        re.MULTILINE,
    )
    for name, text in tracked_texts():
        assert not registry.search(text) or Path(name).name == Path(__file__).name, name
        assert not [host for host in hosts if host in text], name
