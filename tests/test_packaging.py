"""What an installation brings: one name, the same modules from wherever the wheel is built, and one command."""

import importlib
import itertools
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytest.importorskip("hatchling", reason="builds the packages")

#: Parts of other packages that are not public, and who needs them.
NOT_PUBLIC = {
    "valueapprox/cluster.py": ("ray._private.services", ["get_ray_address_from_environment"]),
    "valueapprox/telemetry.py": ("tensorboard.compat.proto", ["event_pb2.Event", "summary_pb2.Summary"]),
    "valueapprox/compiling.py": (
        "numba.core",
        ["codegen.JITCodeLibrary", "compiler.Compiler", "registry.CPUDispatcher"],
    ),
    "valueapprox/cli/terminal.py": ("numba.core.event", ["register", "Listener"]),
    "valueapprox/service/connection.py": (
        "uvicorn.protocols.http",
        [
            *("flow_control.FlowControl.drain", "flow_control.FlowControl.pause_reading"),
            *("httptools_impl.STATUS_LINE", "httptools_impl.RequestResponseCycle"),
            *(
                f"httptools_impl.HttpToolsProtocol.{name}"
                for name in (
                    "_start_asgi_task",
                    "_unset_keepalive_if_required",
                    "on_header",
                    "on_headers_complete",
                    "on_body",
                    "on_message_begin",
                    "on_message_complete",
                    "on_response_complete",
                    "timeout_keep_alive_handler",
                )
            ),
        ],
    ),
}


def build(source, target, out):
    """The file that hatchling builds, without network, of the project in `source`."""
    words = [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", str(out)]
    run = subprocess.run(words, cwd=source, capture_output=True, text=True, check=False, timeout=120)
    assert run.returncode == 0, run.stderr
    (built,) = out.iterdir()
    return built


def names(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return sorted(name for name in archive.namelist() if ".dist-info/" not in name)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build(ROOT, "wheel", tmp_path_factory.mktemp("wheel"))


def test_the_wheel_holds_every_module_once_under_one_name(wheel):
    folders = {"valueapprox": "", "agents": "agents/", "envs": "envs/", "scripts": "commands/"}
    expected = [
        f"valueapprox/{under}{path.relative_to(ROOT / folder).as_posix()}"
        for folder, under in folders.items()
        for path in (ROOT / folder).rglob("*.py")
    ]
    assert [name for name in names(wheel) if name.endswith(".py")] == sorted(expected)
    assert {name.split("/")[0] for name in names(wheel)} == {"valueapprox"}
    assert {f"valueapprox/service/{name}.html" for name in ("page", "requests")} <= set(names(wheel))


def test_a_wheel_from_the_sdist_is_the_same(wheel, tmp_path):
    sdist = build(ROOT, "sdist", tmp_path / "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "source", filter="data")
    (source,) = (tmp_path / "source").iterdir()
    assert names(build(source, "wheel", tmp_path / "again")) == names(wheel)


def test_the_installed_package_leaves_the_name_agents_to_others(wheel, tmp_path):
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    (site / "agents").mkdir()
    (site / "agents" / "__init__.py").write_text("Agent = 'of another package'")
    code = "import agents, valueapprox.agents.base as c, valueapprox; print(agents.Agent); print(c.__file__)"
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == ["of another package", str(site / "valueapprox" / "agents" / "base.py")]


def start(*words):
    return subprocess.run(
        [sys.executable, "-m", "valueapprox", *words], cwd="/", capture_output=True, text=True, check=False, timeout=120
    )


def test_the_command_lists_every_command_and_suggests_one():
    listed = start("--help").stdout
    assert all(f"  {name} " in listed for name in ("train", "evaluate", "fit", "serve", "reproduce", "benchmark"))
    assert "contenders" not in listed
    wrong = start("trian")
    assert wrong.returncode == 1
    assert wrong.stderr == "error: 'trian' is not a command of valueapprox; did you mean train?\n"


@pytest.mark.parametrize("user", NOT_PUBLIC)
def test_parts_that_are_not_public_are_there_and_their_package_has_an_upper_bound(user):
    module, parts = NOT_PUBLIC[user]
    package = module.partition(".")[0]
    assert package in (ROOT / user).read_text(), f"{user} no longer uses {package}: take it out of this list"
    pytest.importorskip(package)
    for part in parts:
        try:
            found = importlib.import_module(module)
            for name in part.split("."):
                if not hasattr(found, name):
                    importlib.import_module(f"{found.__name__}.{name}")
                found = getattr(found, name)
        except (ImportError, AttributeError):
            pytest.fail(f"{package} has no {module}.{part} any more: mend {user}, or lower the bound of {package}")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = itertools.chain(project["dependencies"], *project["optional-dependencies"].values())
    bounds = [words for words in wanted if re.split(r"[^\w-]", words)[0] == package]
    assert bounds, f"pyproject.toml does not name {package}"
    assert all("<" in words for words in bounds), f"{bounds}: without an upper bound"
