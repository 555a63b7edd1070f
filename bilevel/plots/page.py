"""One self-contained HTML page of text, tables and figures."""

import base64
import html
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bilevel.plots.axes import require_matplotlib

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE = """
body { font: 17px/1.55 Georgia, serif; max-width: 52rem; margin: 3rem auto; padding: 0 1.2rem; color: #1b1b1b; }
h1 { font-size: 1.7rem; line-height: 1.25; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
table { border-collapse: collapse; margin: 1.2rem 0; } caption { text-align: left; color: #555; padding-bottom: .4rem; }
th, td { padding: .35rem .9rem; border-bottom: 1px solid #ddd; text-align: right; } th:first-child,
td:first-child { text-align: left; } thead th { border-bottom: 2px solid #444; }
figure { margin: 1.5rem 0; } img { max-width: 100%; } figcaption, footer { color: #555; font-size: .92rem; }
math { font-size: 1.1em; } code, pre { font-size: .86em; } pre { overflow-x: auto; }
@media (prefers-color-scheme: dark) {
  :root { color-scheme: dark; } body { background: #1e1f24; color: #ddd; } a { color: #8ab4f8; }
  caption, figcaption, footer { color: #aaa; } th, td { border-color: #444; } thead th { border-color: #999; }
  img { background: #fff; padding: .3rem; box-sizing: border-box; }
}
"""


def page(title: str, parts: Sequence[str], footer: str = "") -> str:
    """The page; `parts` are HTML, as the functions below make it."""
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>\n'
        f"<body><h1>{html.escape(title)}</h1>\n{body}\n<footer><p>{html.escape(footer)}</p></footer></body></html>\n"
    )


def paragraph(text: str) -> str:
    """Plain text as a paragraph."""
    return f"<p>{html.escape(text)}</p>"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    """A table of plain text."""
    cells = lambda row, tag: "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row)
    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    head = f"<caption>{html.escape(caption)}</caption><thead><tr>{cells(header, 'th')}</tr></thead>"
    return f"<table>{head}<tbody>{body}</tbody></table>"


def figure(png: bytes, caption: str) -> str:
    """A figure, its image within the page."""
    text = html.escape(caption)
    image = base64.b64encode(png).decode()
    return f'<figure><img alt="{text}" src="data:image/png;base64,{image}"><figcaption>{text}</figcaption></figure>'


def use_files_only() -> None:
    """Draw into files, not on a screen; says what to install where matplotlib is missing."""
    require_matplotlib().use("agg")


def to_png(figure: "Figure", dpi: int = 150) -> bytes:
    """The figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()
