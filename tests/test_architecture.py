"""The house: imports run one way, the packages are ours, nothing unpickles, no file names a package registry."""

import ast
import graphlib
import importlib
import os
import re
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import pytest

ROOT = Path(__file__).parents[1]
# Each may import itself and those before it. Found as valueapprox.envs, .agents and .commands.
ORDER = ("valueapprox", "envs", "agents", "scripts")
FILES = [path.relative_to(ROOT) for folder in ORDER for path in sorted((ROOT / folder).rglob("*.py"))]
TESTS = [path.relative_to(ROOT) for path in sorted((ROOT / "tests").rglob("*.py"))]


def imported(source):
    """Every module that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            # `from valueapprox import envs` is an import of valueapprox.envs.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def backwards(folder, source):
    """The imports that run against the order, or take a name that installing the package does not give."""
    later = [f"valueapprox.{name}".replace("scripts", "commands") for name in ORDER[ORDER.index(folder) + 1 :]]
    bare = (*ORDER[1:], "tests")
    return [
        module
        for module in imported(source)
        if module.split(".")[0] in bare or any(f"{module}.".startswith(f"{name}.") for name in later)
    ]


@pytest.mark.parametrize(
    ("folder", "line", "noticed"),
    [
        ("envs", "from valueapprox.agents.policies import x", ["valueapprox.agents.policies.x"]),
        ("valueapprox", "from valueapprox import envs", ["valueapprox.envs"]),
        ("valueapprox", "import valueapprox.agents", ["valueapprox.agents"]),
        ("agents", "import envs", ["envs"]),
        ("agents", "from valueapprox.commands import fit", ["valueapprox.commands.fit"]),
        ("scripts", "from agents.policies import x", ["agents.policies.x"]),
        ("agents", "import valueapprox, valueapprox.agents.a, valueapprox.envs", []),
        ("envs", "from valueapprox import agents_and_more", []),
    ],
)
def test_an_import_that_runs_back_or_is_bare_is_noticed(folder, line, noticed):
    assert backwards(folder, f"def f():\n    {line}") == noticed


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_run_one_way(path):
    assert backwards(path.parts[0], (ROOT / path).read_text()) == []


# Inside of valueapprox: each may import itself and all in lines above. What is in one line does not know each other.
LAYERS = (
    ("checks", "compiling", "files", "interrupts", "registry", "seeding"),
    ("checkpoint", "cluster", "statistics"),
    ("telemetry",),
    ("nn",),
    ("optim",),
    ("td", "supervised"),
    ("service", "cli", "export"),
)
CORE = [path for path in FILES if path.parts[0] == "valueapprox" and path.name not in ("__init__.py", "__main__.py")]


def part_of(module):
    """The folder or file of a module of valueapprox, such as nn or checks; what holds all parts has none."""
    first, _, rest = module.partition(".")
    return rest.split(".")[0] if first == "valueapprox" else ""


@pytest.mark.parametrize("path", CORE, ids=str)
def test_layers_of_the_core(path):
    own = path.parts[1].removesuffix(".py")
    level = next(i for i, layer in enumerate(LAYERS) if own in layer)
    below = {own, *(name for layer in LAYERS[:level] for name in layer)}
    below |= set(LAYERS[0]) if level == 0 else set()
    known = {name for layer in LAYERS for name in layer}
    assert {part for m in imported((ROOT / path).read_text()) if (part := part_of(m)) in known} <= below


def test_no_import_runs_in_a_circle():
    # What a function imports while it runs is none: the parts of a lazy attribute, a command's own.
    graph = {}
    for path in FILES:
        name = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
        name = name if name.startswith("valueapprox") else f"valueapprox.{name.replace('scripts', 'commands', 1)}"
        top = [n for n in ast.parse((ROOT / path).read_text()).body if isinstance(n, ast.Import | ast.ImportFrom)]
        graph[name] = set(imported(ast.unparse(ast.Module(top, []))))
    # A name of `from package import name` may be a module or something in the package.
    edges = {n: {m if m in graph else m.rpartition(".")[0] for m in found} & graph.keys() for n, found in graph.items()}
    for found in edges.values():
        found.discard("valueapprox")  # which holds everything; parts that it is made of do not import it
    order = graphlib.TopologicalSorter(edges)
    order.prepare()


@pytest.mark.parametrize("path", FILES, ids=str)
def test_no_private_name_is_imported(path):
    names = [m for m in imported((ROOT / path).read_text()) if m.startswith("valueapprox")]
    assert [m for m in names if any(part.startswith("_") and not part.endswith("__") for part in m.split("."))] == []


@pytest.mark.parametrize("path", FILES, ids=str)
def test_no_file_is_long_and_no_function_has_many_parameters(path):
    source = (ROOT / path).read_text()
    assert source.count("\n") <= 600
    # The doors of kernels that Python calls take flat arrays, as a NamedTuple there costs four times as much.
    doors = {"begin", "step", "act", "learn_transition", "learn_transitions", "learn_predictions"}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and node.name not in doors:
            assert len(node.args.posonlyargs) + len(node.args.args) <= 12, node.name


@pytest.mark.parametrize("path", FILES, ids=str)
def test_nothing_unpickles(path):
    source = (ROOT / path).read_text()
    unsafe = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    assert unsafe & {module.split(".")[0] for module in imported(source)} == set()
    assert not re.search(r"allow_pickle\s*=\s*True", source)


@pytest.mark.parametrize("path", TESTS, ids=str)
def test_no_test_takes_a_bare_name(path):
    assert [m for m in imported((ROOT / path).read_text()) if m.split(".")[0] in ORDER[1:3]] == []


@pytest.mark.parametrize("name", ["valueapprox", "valueapprox.envs", "valueapprox.agents"])
def test_the_packages_are_those_of_this_checkout(name):
    found = Path(importlib.import_module(name).__file__)
    assert found.resolve() == ROOT / name.removeprefix("valueapprox.") / "__init__.py"


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
