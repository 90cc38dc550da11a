"""How Sphinx builds these pages. Warnings are errors (make docs), and no network is asked."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "trionfq"
author = "the trionfq contributors"
project_copyright = "2026, the trionfq contributors"
release = version = importlib.metadata.version("trionfq")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinxcontrib_trio",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "trionfq"

# Links into trio's and Python's pages would need their inventories, which only a network has.
# Names of theirs stand as text.
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_type_aliases: dict[str, str] = {}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Keys", "params_style")]  # what a TypedDict holds
napoleon_use_ivar = True  # attributes as a list, or a NamedTuple's fields would be told twice


def _write_wire_reference(_app: object) -> None:
    """The wire reference is made from the declarations, so it cannot differ from them."""
    from trionfq import schema

    (Path(__file__).parent / "wire.md").write_text(schema.reference())


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("builder-inited", _write_wire_reference)
