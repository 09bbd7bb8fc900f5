"""The pages that `make docs` builds: README, architecture, log, benchmarks and the reference, one folder per version.

The sources' folder is the checkout's, so that links between its Markdown files work here as they do there.
"""

import json
import os
import re
import tomllib
from pathlib import Path

from packaging.version import Version
from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[1]
SITE = os.environ.get("PENSTOCK_DOCS_URL", "")  # where the folder of the versions is published, if not at a host's root
project = "penstock"
author = copyright = "the penstock authors"
version = release = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
root_doc = "README"
include_patterns = [
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "docs/**.md",
    "benchmarks/**.md",
    "csrc/**.md",
]
suppress_warnings = ["toc.not_included"]  # pages beside the code are found by links
myst_heading_anchors = 3
default_role = "code"
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
napoleon_use_rtype = False
napoleon_use_param = False  # arguments that share a line keep it
napoleon_use_ivar = True  # the attributes a class lists, some of which are properties with a docstring too

html_theme = "pydata_sphinx_theme"
html_title = "penstock"
html_sourcelink_suffix = ""
html_theme_options = {
    # beside the folders of the versions, at the top of the site
    "switcher": {"json_url": f"{SITE}/switcher.json", "version_match": version},
    "check_switcher": False,
    "navbar_start": ["navbar-logo", "version-switcher"],
    "navbar_align": "left",
    "header_links_before_dropdown": 8,
    "show_toc_level": 2,
    "secondary_sidebar_items": ["page-toc"],
}
html_sidebars = {"**": []}

CONTENTS = """
```{toctree}
:hidden:
:glob:
docs/api/kernels
docs/api/engine
docs/*
benchmarks/README
CONTRIBUTING
CHANGELOG
```
"""


def add_contents(app: Sphinx, name: str, source: list[str]) -> None:
    """Puts the other pages into the menu of the first, the README."""
    if name == root_doc:
        source[0] += CONTENTS


def read_as_prose(app: Sphinx, kind: str, name: str, what: object, options: object, lines: list[str]) -> None:
    """Docstrings are prose with `code` in it: whatever else means something to docutils stands for itself."""
    lines[:] = [re.sub(r"(`+[^`]*`+)|([*|]|_(?!\w))", lambda m: m[1] or "\\" + m[2], line) for line in lines]


def add_versions(app: Sphinx, failure: Exception | None) -> None:
    """Lists the versions built so far for the switcher, and sends a visitor of the site to the newest."""
    if failure or app.builder.name != "html":
        return
    site = Path(app.outdir).parent
    versions = sorted((path.name for path in site.iterdir() if re.match(r"\d", path.name)), key=Version, reverse=True)
    pages = {name: f"{SITE}/{name}/{root_doc}.html" for name in versions}
    entries = [{"version": name, "url": url, "preferred": name == versions[0]} for name, url in pages.items()]
    (site / "switcher.json").write_text(json.dumps(entries, indent=1))
    page = '<!doctype html><meta http-equiv="refresh" content="0; url={}">\n'
    (Path(app.outdir) / "index.html").write_text(page.format(f"{root_doc}.html"))
    (site / "index.html").write_text(page.format(f"{versions[0]}/{root_doc}.html"))


def setup(app: Sphinx) -> None:
    app.connect("source-read", add_contents)
    app.connect("autodoc-process-docstring", read_as_prose, priority=100)  # before napoleon
    app.connect("build-finished", add_versions)
