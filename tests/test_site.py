"""The documentation builds without a warning, its formulas need no script, and it asks nothing of another host."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytest.importorskip("mkdocs", reason="the `docs` group is not installed")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = (sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "-f", "docs/site/mkdocs.yml")
    done = subprocess.run((*command, "-d", folder), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_formulas_are_mathml(site: Path):
    page = (site / "how_it_works.html").read_text()
    assert page.count("<math") > 50
    assert not any("arithmatex" in path.read_text() for path in site.rglob("*.html"))


def test_nothing_is_asked_of_another_host(site: Path):
    loads = re.compile(r"<(?:script|img|link|iframe|source)\b[^>]*?\b(?:src|href)=[\"']?((?:https?:)?//[^\"'\s>]+)")
    asked = {(path.name, url) for path in site.rglob("*.html") for url in loads.findall(path.read_text())}
    assert asked == set()


def test_signatures_have_shapes_and_sources(site: Path):
    text = re.sub(r"<[^>]+>", "", (site / "api" / "objectives.html").read_text())
    assert "samples features" in text
    assert "class SparseCoding(AbstractLeastSquares):" in text
