"""The wheel holds the library and nothing else, and works where the source is not; the lock holds no address."""

import json
import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "bilevel"
LOCK = (ROOT / "requirements.lock").read_text()
TEXTS = [
    path
    for pattern in (
        "*.md",
        "*.toml",
        "*.lock",
        "Makefile",
        "LICENSE",
        ".ci/*",
        "bilevel/**/*",
        "tests/**/*",
        "benchmarks/*",
        "docs/**/*",
        "notebooks/*",
    )
    for path in sorted(ROOT.glob(pattern))
    if path.is_file() and "__pycache__" not in path.parts
]

# Imports every module, so that each finds what it needs; `__main__` would run.
IMPORT_ALL = """
import importlib, importlib.metadata, json, pkgutil
import bilevel
names = [m.name for m in pkgutil.walk_packages(bilevel.__path__, "bilevel.") if not m.name.endswith("__main__")]
for name in names:
    importlib.import_module(name)
found = dict(file=bilevel.__file__, version=bilevel.__version__, installed=importlib.metadata.version("bilevel"))
print(json.dumps({**found, "modules": len(names)}))
"""


def run(*command: object, cwd: Path) -> str:
    """Standard output of a command that must succeed, without the paths of this environment."""
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", directory, cwd=ROOT)
    (built,) = directory.glob("*.whl")
    return built


def test_the_wheel_holds_the_library_and_nothing_else(wheel: Path):
    names = set(zipfile.ZipFile(wheel).namelist())
    source = {
        p.relative_to(ROOT).as_posix() for p in PACKAGE.rglob("*") if p.is_file() and "__pycache__" not in p.parts
    }
    assert "bilevel/py.typed" in source
    assert {name for name in names if not re.match(r"bilevel-[\w.]+\.dist-info/", name)} == source


def test_the_wheel_works_where_the_source_is_not(wheel: Path, tmp_path: Path):
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    install = ("pip", "install", "--quiet", "--no-deps", "--no-index", "--offline", "--no-cache", "--python", python)
    run(sys.executable, "-m", "uv", *install, wheel, cwd=tmp_path)
    # Behind its own packages it sees the dependencies here, but not the source: a path in a `.pth` file is searched
    # for packages, not for the `.pth` file of an editable install.
    paths = sysconfig.get_paths()
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip()
    Path(site, "dependencies.pth").write_text("\n".join(sorted({paths["purelib"], paths["platlib"]})))

    quiet = ("-W", "error", "-W", "ignore:JAXopt is no longer maintained:DeprecationWarning")
    found = json.loads(run(python, *quiet, "-c", IMPORT_ALL, cwd=tmp_path))
    assert Path(found["file"]) == Path(site, "bilevel", "__init__.py")
    assert found["version"] == found["installed"] == wheel.name.split("-")[1]
    assert found["modules"] > 10


def test_every_locked_package_has_a_hash():
    requirements = re.sub(r" *\\\n *", " ", LOCK)
    packages = [line for line in requirements.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    assert len(packages) > 20
    assert [line for line in packages if not re.match(r"[\w.-]+==\S+ .*--hash=sha256:[0-9a-f]{64}", line)] == []


def test_the_lock_holds_no_address():
    assert re.findall(r"://|--(?:extra-)?index-url|--find-links|(?m:^-[if] )", LOCK) == []


def test_releases_of_jax_that_miscompile_or_hang_are_excluded():
    versions = re.findall(r"^(jax|jaxlib)==([\w.]+)", LOCK, flags=re.MULTILINE)
    assert {name for name, _ in versions} == {"jax", "jaxlib"}
    assert not any(version.startswith(("0.10.", "0.11.")) for _, version in versions)
    excluded = r'"jax(?:lib)?>=[\d.]+,!=0\.10\.\*,!=0\.11\.\*"'
    assert len(re.findall(excluded, (ROOT / "pyproject.toml").read_text())) == 2


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_file_knows_where_it_was_written(path: Path):
    text = path.read_bytes().decode(errors="replace")
    assert str(ROOT) not in text
    assert re.findall(r"(?<![\w.])/(?:home|root|work|Users)/\w+", text) == []
