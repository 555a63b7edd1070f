"""Pages made from what is there, their places in the navigation, and links from names of the library to its API."""

import contextlib
import functools
import importlib
import pkgutil
import re
from pathlib import Path
from typing import Any

import executed
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

CHANGELOG = Path(__file__).parents[2] / "CHANGELOG.md"
FENCE = re.compile(r"(^ *```.*?^ *```[ \t]*$)", re.DOTALL | re.MULTILINE)
#: `bl.argmin` or `bl.Implicit(ridge=1e-8)`, in the text. Names of these packages must exist; the library's are linked.
NAME = re.compile(r"(?<![\[`])`((?:bl|bilevel|jax|jaxopt|lineax|optax|sklearn)(?:\.\w+)+)(\([^`\n]*\))?`(?![\]`])")
#: `<!-- tables of measured/sparse_coding.md -->`
TABLES = re.compile(r"^<!-- tables of (\S+) -->$", re.MULTILINE)
SMALL = re.compile(r"\b\d[\d.]*e-\d+\b")
#: In the repository a notebook, on the site its page.
NOTEBOOK = re.compile(r"\(\.\./\.\./notebooks/(\w+)\.ipynb\)")
NOTEBOOKS, MEASURED = "<!-- list of notebooks -->", "<!-- list of measurements -->"
CELL = re.compile(r"<td[^>]*>.*?</td>", re.DOTALL)
#: `sklearn.linear_model` within code, not a number.
DOT = re.compile(r"(?<=[\w)])(?<!\bbl)\.(?=[A-Za-z_])(?=[^<>]*</)")


def on_files(files: Files, config: Any) -> Files:
    """Add the notebooks and the changelog, and spell out the folders of the navigation."""
    files.append(File.generated(config, "changelog.md", content=CHANGELOG.read_text()))
    for text in executed.TEXTS:
        page = executed.as_page(text)
        files.append(File.generated(config, f"notebooks/{text.stem}.md", content=page.markdown))
        for name, figure in page.figures.items():
            files.append(File.generated(config, f"notebooks/{name}", content=figure))
    config.nav = [_spelled_out(entry, files) for entry in config.nav]
    return files


def _spelled_out(entry: Any, files: Files) -> Any:
    (title, where), *_ = entry.items()
    if not (isinstance(where, str) and where.endswith("/")):
        return entry
    pages = sorted(f.src_uri for f in files.documentation_pages() if f.src_uri.startswith(where))
    # The page of the folder itself comes first.
    return {title: sorted(pages, key=lambda page: not page.endswith("/index.md"))}


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Put in measured tables and the lists of notebooks and measurements; link names, outside of blocks of code."""
    markdown = TABLES.sub(lambda match: _tables(match[1], page, files), markdown)
    markdown = NOTEBOOK.sub(r"(\1.md)", markdown)
    if NOTEBOOKS in markdown:
        links = (f"- [{executed.title(text)}]({text.stem}.md)" for text in executed.TEXTS)
        markdown = markdown.replace(NOTEBOOKS, "\n".join(links))
    if MEASURED in markdown:
        markdown = markdown.replace(MEASURED, _measurements(files))
    parts = FENCE.split(markdown)
    parts[::2] = [NAME.sub(lambda match: _link(match, page, _documented(files)), part) for part in parts[::2]]
    return "".join(parts)


def on_page_content(html: str, **_: Any) -> str:
    """In tables names may break after their dots, and numbers such as 1e-8 may not break."""

    def of_cell(match: re.Match) -> str:
        cell = re.sub(r"<code>.*?</code>", lambda code: DOT.sub(".<wbr>", code[0]), match[0])
        return SMALL.sub(r'<span class="number">\g<0></span>', cell)

    return CELL.sub(of_cell, html)


def _tables(path: str, page: Any, files: Files) -> str:
    source = files.get_file_from_path(path)
    tables = re.findall(r"(?:^\|.*\n)+", source.content_string, re.MULTILINE) if source else []
    if not tables:
        raise PluginError(f"{page.file.src_uri}: there are no tables in {path!r}")
    return "\n".join(tables)


def _measurements(files: Files) -> str:
    """The pages of benchmarks with what each asks, its first paragraph."""
    pages = [f for f in files.documentation_pages() if re.fullmatch(r"measured/(?!index).+\.md", f.src_uri)]
    entries = []
    for page in sorted(pages, key=lambda page: page.src_uri):
        heading, asks, *_ = page.content_string.split("\n\n")
        entries.append(f"- [{heading.strip('# ')}]({Path(page.src_uri).name}). {' '.join(asks.split())}")
    return "\n".join(entries)


def _link(match: re.Match, page: Any, documented: dict[int, str]) -> str:
    first, *rest = match[1].split(".")
    found = [importlib.import_module(re.sub(r"^bl$", "bilevel", first))]
    for part in rest:
        try:
            found.append(_member(found[-1], part))
        except (AttributeError, ImportError) as error:
            raise PluginError(f"{page.file.src_uri}: there is no `{match[1]}`") from error
    # An attribute has no place of its own, but its class has.
    places = [documented[id(part)] for part in reversed(found) if id(part) in documented]
    return f"[{match[0]}][{places[0]}]" if places else match[0]


def _member(owner: Any, name: str) -> Any:
    if name in getattr(owner, "__dataclass_fields__", ()):
        # No attribute of the class where it has no default.
        return owner.__dataclass_fields__[name]
    with contextlib.suppress(AttributeError):
        return getattr(owner, name)
    return importlib.import_module(f"{owner.__name__}.{name}")


@functools.cache
def _documented(files: Files) -> dict[int, str]:
    """The objects to which pages of the API give a place, by their identity, and its name."""
    pages = (file.content_string for file in files.documentation_pages() if file.src_uri.startswith("api/"))
    names = (name for page in pages for name in re.findall(r"^::: (\S+)", page, re.MULTILINE))
    return {id(pkgutil.resolve_name(name)): name for name in names}
