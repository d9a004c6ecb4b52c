"""The site: built with warnings as errors, complete, and readable without a network."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import valueapprox
import valueapprox.envs
import valueapprox.export
import valueapprox.service
import valueapprox.statistics
from valueapprox.agents import catalogue

ROOT = Path(__file__).parents[2]
PUBLIC = [
    (m, name)
    for m in (valueapprox, valueapprox.service, valueapprox.envs, valueapprox.export, valueapprox.statistics)
    for name in m.__all__
]
PUBLIC += [(valueapprox.agents, name) for name in catalogue.__all__ if name != "AGENTS"]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("sphinx", reason="Sphinx is not installed; make docs installs it")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", ROOT / "docs", folder]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return folder


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_public_name_has_an_entry(site):
    from sphinx.util.inventory import InventoryFile

    inventory = InventoryFile.loads((site / "objects.inv").read_bytes(), uri="")
    documented = {name for kind in inventory.data if kind.startswith("py:") for name in inventory.data[kind]}
    last = {name.rpartition(".")[2] for name in documented}
    missing = [f"{module.__name__}.{name}" for module, name in PUBLIC if name not in last]
    assert not missing


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_pages_load_nothing_from_elsewhere(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        text = page.read_text()
        for tag in re.findall(r"<(?:script|link|img|iframe|source)\b[^>]*>", text):
            loaded = re.search(r'(?:src|href)="(https?:)?//', tag)
            assert not loaded, f"{page.relative_to(site)}: {tag}"
    for style in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?(https?:)?//|@import", style.read_text()), style.name
    assert "<math" in (site / "explanation" / "mathematics.html").read_text()
