"""What all tests share: no token for Ray, helper environments for workers too, one Ray and one browser for all."""

import gc
import os
import signal
import sys
from pathlib import Path

os.environ["RAY_AUTH_MODE"] = "disabled"  # read when Ray is imported

# A suite that runs in the background of a shell, or outlives its terminal, has children that ignore these.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

HELPERS = str(Path(__file__).parent / "agents")  # holds scripted_envs.py
if HELPERS not in sys.path:
    sys.path.append(HELPERS)
# Ray workers and scripts inherit the environment, not sys.path.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [HELPERS, os.environ.get("PYTHONPATH")]))

import pytest  # noqa: E402

# Compiling makes many objects that stay: the collector would look through all of them a thousand times.
gc.set_threshold(50_000, 20, 100)


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="also the combinations that are marked `full`: make bars")


@pytest.fixture(scope="session")
def local_ray():
    """A Ray of four CPUs; `valueapprox.cluster.cluster` uses it as it is."""
    import ray

    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=100 * 2**20,
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def _browser(tmp_path_factory):
    from browser import Browser, installed

    program = installed()
    running = None if program is None else Browser(program, tmp_path_factory.mktemp("profile"))
    yield running
    if running is not None:
        running.close()


@pytest.fixture
def browser(_browser, record_property):
    """A headless browser; see browser.py."""
    if _browser is None:
        pytest.skip("no browser is installed: Chromium, or Chrome")
    record_property("browser", _browser.version)
    return _browser


def pytest_collection_modifyitems(config, items):
    """Leave out what is `full`, and send tests to processes.

    Tests of a folder run in one process of several: they compile the same kernels, and share a Ray and a browser.
    """
    if not config.getoption("--full"):
        left_out = [item for item in items if item.get_closest_marker("full")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("full")]
    for item in items if config.pluginmanager.hasplugin("xdist") else ():
        folder = item.path.parent.relative_to(Path(__file__).parent)
        item.add_marker(pytest.mark.xdist_group(str(folder)))


def pytest_terminal_summary(terminalreporter):
    """Say in which browser tests ran."""
    ran = [dict(report.user_properties).get("browser") for report in terminalreporter.getreports("passed")]
    for version in sorted(set(filter(None, ran))):
        terminalreporter.write_line(f"{ran.count(version)} tests passed in a headless browser, {version}")


@pytest.fixture(scope="session")
def start_script():
    """`start_script(script, *options, cwd)` runs one of scripts/ in a process of its own: see fork_server.py."""
    from fork_server import Scripts

    scripts = Scripts()
    yield scripts
    scripts.close()
