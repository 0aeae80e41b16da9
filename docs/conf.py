"""Sphinx: `make docs` builds docs/_build/html, without network; a warning is an error."""

import re
import sys
from pathlib import Path

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from slams import __version__  # noqa: E402

project = "slams"
copyright = "the slams developers"
release = version = __version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
default_role = "code"  # docstrings mark names with single backticks
html_theme = "furo"
html_title = f"slams {release}"
html_math_renderer = "mathml"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
autodoc_member_order = "groupwise"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_custom_sections = ["Source"]
napoleon_use_ivar = True
napoleon_use_rtype = False

_MARKUP = re.compile(r"(`[^`]*`)|([*|\\])|(\w)_(?!\w)")


def escape(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Docstrings are plain text with symbols such as `x_t`, `*B` and `|x|`, which are no markup of Sphinx."""
    for place, line in enumerate(lines):
        if not line.lstrip().startswith((">>>", "...")):
            lines[place] = _MARKUP.sub(_literal, line)


def _literal(match: re.Match[str]) -> str:
    quoted, sign, letter = match.groups()
    return quoted or (f"\\{sign}" if sign else f"{letter}\\_")


def formula(translator: HTML5Translator, node: nodes.Element) -> None:
    """A formula as MathML, which browsers draw without a script from elsewhere."""
    block = isinstance(node, nodes.math_block)
    markup = tex2mathml(node.astext(), as_block=block)
    translator.body.append(f'<div class="math">{markup}</div>' if block else markup)
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Connect the above; before napoleon (500), which reads the sections."""
    app.connect("autodoc-process-docstring", escape, priority=400)
    app.add_html_math_renderer("mathml", inline_renderers=(formula, None), block_renderers=(formula, None))
