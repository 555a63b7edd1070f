"""Every block of Python on every page, in the README and in docstrings runs, as a reader would type it.

The blocks of a page share a namespace. What a block prints stands below it, in a block marked `text`, where the page
shows it; `...` stands for anything.
"""

import ast
import doctest
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import jaxopt
import jaxopt.linear_solve
import jaxopt.perturbations
import pytest

import bilevel as bl

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
BLOCK = re.compile(r"^```(python|text)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PAGES = [path for path in (ROOT / "README.md", *sorted(DOCS.rglob("*.md"))) if BLOCK.search(path.read_text())]
ROOMS = "objectives prox solvers outer.monitors estimators datasets plots studies".split()
JAXOPT = "prox projection loss objective linear_solve implicit_diff isotonic perturbations".split()
#: Between what two blocks print.
MARK = "\x1e"
CHECKER, FLAGS = doctest.OutputChecker(), doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE

#: What the blocks of docstrings take for granted.
GIVEN = """
import equinox as eqx
import jax, jax.numpy as jnp
import optax
import bilevel as bl
dictionary, head, data = jnp.eye(3), jnp.zeros((3, 2)), (jnp.eye(3), jnp.ones(3))
cross_entropy = optax.losses.softmax_cross_entropy_with_integer_labels
objective, rule = bl.objectives.Ridge(0.1), bl.solvers.Rates(0.1)
"""


def run(script: str, folder: Path) -> str:
    """What a script prints, in a process of its own: a reader has neither 64 bits nor strict promotion switched on."""
    path = folder / "page.py"
    path.write_text(script)
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_blocks_of_a_page_run_and_print_what_it_says(page: Path, tmp_path: Path):
    code, printed = [], {}
    for language, block in BLOCK.findall(page.read_text()):
        if language == "python":
            code.append(block)
        elif code:
            printed[len(code) - 1] = block
    outputs = run(f"\nprint({MARK!r}, end='')\n".join(code), tmp_path).split(MARK)
    for index, wanted in printed.items():
        assert CHECKER.check_output(wanted, outputs[index], FLAGS), f"{code[index]}\nprints\n{outputs[index]}"


def test_the_blocks_of_docstrings_run(tmp_path: Path):
    blocks = []
    for path in sorted((ROOT / "bilevel").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                docstring = ast.get_docstring(node) or ""
                blocks += re.findall(r"^ *```python\n(.*?)^ *```$", docstring, re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 3
    run("\n".join(GIVEN + textwrap.dedent(block) for block in blocks), tmp_path)


@pytest.mark.parametrize("room", ["bilevel", *(f"bilevel.{room}" for room in ROOMS)])
def test_the_api_has_every_public_name(room: str):
    """What a room, or the front door, hands out by `import name as name`."""
    text = "\n".join(page.read_text() for page in (DOCS / "api").glob("*.md"))
    documented = {id(pkgutil.resolve_name(name)) for name in re.findall(r"^::: (\S+)", text, re.MULTILINE)}
    module = importlib.import_module(room)
    names = re.findall(r"\b(\w+) as \1\b", inspect.getsource(module))
    objects = {name: getattr(module, name) for name in names}
    assert names
    assert [k for k, v in objects.items() if id(v) not in documented and not inspect.ismodule(v)] == []


def test_every_result_is_explained():
    own = set(re.findall(r"^    (\w+) = \($", (ROOT / "bilevel" / "core" / "results.py").read_text(), re.MULTILINE))
    explained = set(re.findall(r"^\| `(\w+)` \|", (DOCS / "differentiate_safely.md").read_text(), re.MULTILINE))
    assert own == explained and all(hasattr(bl.RESULTS, name) for name in own)


def test_jaxopt_is_covered():
    """Every name that JAXopt hands out stands on the page for those who come from it."""
    page = (DOCS / "coming_from" / "jaxopt.md").read_text()
    names = []
    for module in (jaxopt, *(getattr(jaxopt, name) for name in JAXOPT)):
        lines = re.findall(r"^from jaxopt\._src\S* import (.+)$", inspect.getsource(module), re.MULTILINE)
        names += [f"{module.__name__}.{name.strip()}" for line in lines for name in line.split(",")]
    assert len(names) > 90
    assert [name for name in names if f"`{name}`" not in page] == []
