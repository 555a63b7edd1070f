"""Formulas as MathML, which browsers draw without a script and without a network."""

import html
import re
import unicodedata
from typing import Any

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError

#: What `pymdownx.arithmatex` makes of $…$ and $$…$$.
INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)
BLOCK = re.compile(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', re.DOTALL)

#: What latex2mathml does not know, in what it knows.
REWRITTEN = (
    (r"(\\operatorname\*?\{[A-Za-z]+)\\[,;: ]([A-Za-z]+\})", r"\1 \2"),
    (r"\\arg\s*\\(min|max)", r"\\operatorname*{arg \1}"),
    (r"\\(begin|end)\{(?:aligned|split|gathered)\}", r"\\\1{align*}"),
    (r"\\[bB]igg?[lrm]?\s*(?=\\(?:\||[lr]?Vert|[lr]angle))", ""),
    (r"\\\|", r"\\Vert "),
    (r"\\mathrm\{([A-Za-z])\}", r"\\mathrm \1 "),
)
#: And what browsers would not draw as LaTeX does: limits below their operator, upright Greek capitals, "similar to",
#: bars that neither stretch nor stand off, as they open and close.
REDRAWN = (
    (r"(?<=<mo)(?=>(?:min|max|inf|sup|lim)</mo>)", ' movablelimits="true"'),
    (r'<msub>(<mo movablelimits="true">[^<]*</mo>)(.*?)</msub>', r"<munder>\1\2</munder>"),
    (r"<mi>(&#x003[9A][0-9A-F];)</mi>", r'<mi mathvariant="normal">\1</mi>'),
    (r"<mi>&#x0007E;</mi>", "<mo>&#x0223C;</mo>"),
    (
        r'<m[oi](?: fence="false")?(?: stretchy="false")?>(&#x02016;|&#x0007C;|\|)</m[oi]>',
        r'<mo stretchy="false" lspace="0" rspace="0">\1</mo>',
    ),
)
STYLED = re.compile(r'<(m[ion]) mathvariant="(?!normal")([a-z-]+)">([^<]+)</\1>')


def on_page_content(content: str, page: Any, **_: Any) -> str:
    """Every formula of the page, converted."""
    source = page.file.src_uri
    content = INLINE.sub(lambda match: mathml(match[1], "inline", source), content)
    return BLOCK.sub(lambda match: f'<div class="formula">{mathml(match[1], "block", source)}</div>', content)


def mathml(formula: str, display: str, source: str) -> str:
    """A formula in LaTeX as MathML; an error where a command is not known, which would stand there as text."""
    converted = convert(_replaced(REWRITTEN, html.unescape(formula)), display=display)
    unknown = re.findall(r"\\[a-zA-Z|]*|<mi>&</mi>", converted)
    if unknown:
        raise PluginError(f"{source}: latex2mathml does not know {unknown} of the formula {formula.strip()}")
    # Browsers know letters of a style as characters of their own, and no longer as an attribute.
    styled = lambda m: f"<{m[1]}>{''.join(_styled(letter, m[2]) for letter in html.unescape(m[3]))}</{m[1]}>"
    return STYLED.sub(styled, _replaced(REDRAWN, converted))


def _replaced(rules: tuple, text: str) -> str:
    for pattern, replacement in rules:
        text = re.sub(pattern, replacement, text)
    return text


def _styled(letter: str, style: str) -> str:
    words = style.upper().replace("BOLD-ITALIC", "BOLD ITALIC")
    name = re.sub(r"^(LATIN|GREEK) (CAPITAL|SMALL) LETTER", r"\2", unicodedata.name(letter, ""))
    for full in (f"MATHEMATICAL {words} {name}", f"{words} {name}"):
        try:
            return unicodedata.lookup(full)
        except KeyError:
            continue
    return letter
