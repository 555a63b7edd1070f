"""Imports go down the floors only; rooms on one floor do not import each other; rooms and functions stay small."""

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).parents[1] / "bilevel"
FLOORS = {
    "core": 0,
    "kernels": 1,
    "prox": 1,
    "scale": 1,
    "objectives": 2,
    "solvers": 3,
    "differentiation": 4,
    "outer": 5,
    "estimators": 6,
}
# Side rooms, for demos and notebooks: they may look at every floor below, and none imports them.
FLOORS |= {"datasets": 6, "plots": 6, "studies": 6}
ABOVE_ALL = 7
JAXOPT_ROOM = "bilevel.solvers.jaxopt_adapter"
MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 60


class Module(NamedTuple):
    name: str
    tree: ast.Module
    num_lines: int

    @property
    def room(self) -> str:
        return room_of(self.name)

    def imports(self) -> Iterator[tuple[str, str]]:
        """(module, full name) of every import, also inside functions: (`a.b`, `a.b.c`) for `from a.b import c`."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from ((alias.name, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                module = "." * node.level + (node.module or "")
                yield from ((module, f"{module}.{alias.name}") for alias in node.names)


def room_of(name: str) -> str:
    """The room of a module, the front door itself for `bilevel`."""
    return name.split(".")[1] if "." in name else ""


def modules_of(package: Path) -> dict[str, Module]:
    modules = {}
    for path in package.rglob("*.py"):
        name = ".".join(path.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__")
        modules[name] = Module(name, ast.parse(path.read_text()), len(path.read_text().splitlines()))
    return modules


def misplaced_imports(module: Module) -> Iterator[str]:
    floor = FLOORS.get(module.room, ABOVE_ALL)
    for source, target in module.imports():
        top = target.split(".")[0]
        if source.startswith("."):
            yield f"{module.name} imports {source} by a relative name"
        if top == "jaxopt" and module.name != JAXOPT_ROOM:
            yield f"{module.name} imports jaxopt"
        if floor == ABOVE_ALL or top != PACKAGE.name:
            continue
        if source == PACKAGE.name:
            yield f"{module.name} imports the front door"
        elif room_of(target) != module.room and FLOORS.get(room_of(target), ABOVE_ALL) >= floor:
            yield f"{module.name} imports {target}, which is not below"


def cycles(modules: dict[str, Module]) -> Iterator[str]:
    graph = {
        module.name: {target if target in modules else source for source, target in module.imports()} & modules.keys()
        for module in modules.values()
    }
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        yield "a cycle: " + ", ".join(error.args[1])


def forbidden_names(module: Module) -> Iterator[str]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Name) and node.id in ("hasattr", "super"):
            yield f"{module.name}:{node.lineno} uses {node.id}"
        if isinstance(node, ast.Attribute) and node.attr == "_src":
            yield f"{module.name}:{node.lineno} uses jax._src"
    if any("_src" in target.split(".") for _, target in module.imports()):
        yield f"{module.name} imports jax._src"


def too_long(module: Module) -> Iterator[str]:
    if module.num_lines > MAX_FILE_LINES:
        yield f"{module.name} has {module.num_lines} lines"
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = node.body[0] if ast.get_docstring(node) is not None else None
            in_docstring = docstring.end_lineno - docstring.lineno + 1 if docstring else 0
            lines = node.end_lineno - node.lineno + 1 - in_docstring
            if lines > MAX_FUNCTION_LINES:
                yield f"{module.name}.{node.name} has {lines} lines"


def violations(package: Path) -> list[str]:
    modules = modules_of(package)
    rooms = {path.parent.name for path in package.glob("*/*.py")}
    found = [f"{room} is on no floor" for room in sorted(rooms - FLOORS.keys())]
    for module in modules.values():
        found += [*misplaced_imports(module), *forbidden_names(module), *too_long(module)]
    return found + list(cycles(modules))


def test_the_house_is_in_order():
    assert len(modules_of(PACKAGE)) > 10
    assert violations(PACKAGE) == []


LONG = "def f():\n" + "    x = 1\n" * 59
SYNTHETIC = [
    ({"prox/a.py": "from bilevel.core import tree\nimport numpy"}, None),
    ({"prox/a.py": "from bilevel.prox.b import x", "prox/b.py": ""}, None),
    ({"__init__.py": "from bilevel.outer import x", "demo.py": "import bilevel\nfrom bilevel.plots import x"}, None),
    ({"plots/a.py": "from bilevel.core import tree"}, None),
    ({"solvers/jaxopt_adapter.py": "import jaxopt"}, None),
    ({"core/a.py": LONG}, None),
    ({"core/a.py": LONG.replace("f():\n", 'f():\n    """One\n\n    two."""\n')}, None),
    ({"core/a.py": "x = 1\n" * 400}, None),
    (
        {"prox/a.py": "from bilevel.objectives import x"},
        "bilevel.prox.a imports bilevel.objectives.x, which is not below",
    ),
    (
        {"prox/a.py": "def f():\n    import bilevel.outer.b"},
        "bilevel.prox.a imports bilevel.outer.b, which is not below",
    ),
    (
        {"estimators/a.py": "from bilevel.plots import x"},
        "bilevel.estimators.a imports bilevel.plots.x, which is not below",
    ),
    (
        {"datasets/a.py": "from bilevel.plots import x"},
        "bilevel.datasets.a imports bilevel.plots.x, which is not below",
    ),
    ({"outer/a.py": "import bilevel.datasets.b"}, "bilevel.outer.a imports bilevel.datasets.b, which is not below"),
    ({"outer/a.py": "from bilevel.demo import x"}, "bilevel.outer.a imports bilevel.demo.x, which is not below"),
    ({"outer/a.py": "from bilevel import core"}, "bilevel.outer.a imports the front door"),
    ({"outer/a.py": "import bilevel as bl"}, "bilevel.outer.a imports the front door"),
    ({"outer/a.py": "from .b import x"}, "bilevel.outer.a imports .b by a relative name"),
    ({"core/a.py": "from bilevel.core.b import x", "core/b.py": "import bilevel.core.a"}, "a cycle: "),
    ({"core/a.py": "from bilevel.core import x", "core/__init__.py": "from bilevel.core import a"}, "a cycle: "),
    ({"solvers/a.py": "from jaxopt.base import x"}, "bilevel.solvers.a imports jaxopt"),
    ({"__init__.py": "import jaxopt"}, "bilevel imports jaxopt"),
    ({"core/a.py": "from jax._src import core"}, "bilevel.core.a imports jax._src"),
    ({"core/a.py": "from jax import _src"}, "bilevel.core.a imports jax._src"),
    ({"core/a.py": "import jax\njax._src.core"}, "bilevel.core.a:2 uses jax._src"),
    ({"core/a.py": "hasattr(x, 'y')"}, "bilevel.core.a:1 uses hasattr"),
    ({"core/a.py": "class A:\n    def f(self):\n        super().f()"}, "bilevel.core.a:3 uses super"),
    ({"core/a.py": "x = 1\n" * 401}, "bilevel.core.a has 401 lines"),
    ({"core/a.py": LONG + "    x = 1\n"}, "bilevel.core.a.f has 61 lines"),
    ({"core/a.py": "class A:\n    async " + (LONG + "    x = 1\n").replace("\n    ", "\n        ")}, "has 61 lines"),
    ({"attic/a.py": ""}, "attic is on no floor"),
]


@pytest.mark.parametrize(("files", "expected"), SYNTHETIC)
def test_of_the_test(tmp_path: Path, files: dict[str, str], expected: str | None):
    for name, text in files.items():
        path = tmp_path / "bilevel" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    found = violations(tmp_path / "bilevel")
    assert len(found) == (expected is not None)
    assert (expected or "") in "".join(found)
