"""The documentation site: Sphinx, pages in Markdown (MyST), the theme Furo, the API from the docstrings (numpydoc).

Everything that a page needs is in the folder that is built: no font, script or picture comes from elsewhere, and
formulas are MathML, made while building.
"""

from __future__ import annotations

from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

import valueapprox
import valueapprox.service

for _name in valueapprox.service.__all__:  # imported when asked for, and autodoc does not ask
    setattr(valueapprox.service, _name, getattr(valueapprox.service, _name))

project = "valueapprox"
copyright = "its contributors"
release = version = valueapprox.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "numpydoc"]
exclude_patterns = ["_build"]
nitpicky = False  # docstrings quote arguments and formulas in backticks too, which are nothing to link to
default_role = "py:obj"
smartquotes_action = "qe"  # --option keeps its two dashes

myst_enable_extensions = ["dollarmath", "deflist", "fieldlist", "attrs_inline"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_type_aliases = {"ArrayLike": "ArrayLike"}
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False

highlight_language = "text"  # formulas in docstrings; blocks of code name their language
html_theme = "furo"
html_title = f"valueapprox {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_theme_options = {"footer_icons": []}
pygments_style = "friendly"
pygments_dark_style = "monokai"

linkcheck_ignore = [r"http://(localhost|127\.0\.0\.1|HOST).*"]


def visit_math(self: Any, node: nodes.math) -> None:
    """A formula within a line."""
    self.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def visit_math_block(self: Any, node: nodes.math_block) -> None:
    """A formula of its own."""
    self.body.append(f'<div class="math-block">{tex2mathml(node.astext(), as_block=True)}</div>')
    raise nodes.SkipNode


def read_as_written(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are written to be read in the source: |x| is an absolute value, an indented block a formula."""
    block = -1  # indentation of the paragraph before an indented block that we are in
    for i, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if block >= 0 and (not line.strip() or indent > block):
            continue
        block = -1
        following = [text for text in lines[i + 1 : i + 3] if text.strip()]
        indented = following and not lines[i + 1].strip() and len(following[0]) - len(following[0].lstrip()) > indent
        if line.rstrip().endswith(":") and not line.rstrip().endswith("::") and indented:
            block = indent
        parts = line.split("`")
        parts[::2] = [part.replace("|", r"\|") for part in parts[::2]]
        lines[i] = "`".join(parts) + ":" * (block >= 0)


def setup(app: Any) -> None:
    """Formulas as MathML, which every browser draws by itself; docstrings before numpydoc reads them."""
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
    app.connect("autodoc-process-docstring", read_as_written, priority=100)
