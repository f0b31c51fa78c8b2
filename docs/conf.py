"""How the documentation is built; `scripts/docs` builds it. Nothing here needs a network."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.config import Config

import growth

ROOT = Path(__file__).parent.parent

# For the notebooks and the gallery. Their programs run once or a few hundred times: compiling them
# fast matters more than how fast they are, and the next build finds those that are still the same.
os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "JAX_COMPILATION_CACHE_DIR": str(ROOT / "build" / "programs"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
    "HF_HUB_OFFLINE": "1",
}

project = "growth"
author = copyright = "the authors of growth"
version = release = growth.__version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon", "myst_nb"]
exclude_patterns = ["conf.py", "gallery.py"]

# Notebooks are Python files with cells between `# %%`; they run in every build.
nb_custom_formats = {".py": ["jupytext.reads", {"fmt": "py:percent"}]}
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 180
nb_merge_streams = True

# Docstrings are Google's; a name in backticks is a link where it is a public one.
default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_class_signature = "separated"
autosummary_generate = False
napoleon_custom_sections = [("Attributes", "params_style")]  # what a dataclass is made of
napoleon_use_rtype = False
add_module_names = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
suppress_warnings = ["misc.highlighting_failure"]

html_theme = "furo"
html_title = f"growth {version}"
html_static_path = ["static"]
html_css_files = ["growth.css"]
html_copy_source = False
html_show_sphinx = False


# Links of files at the root to each other, and the pages that include them.
PAGES = {"README.md": "/index.md", "WORKSPACE.md": "/map.md", "CHANGELOG.md": "/changelog.md"}


def make_gallery(app: Sphinx, config: Config) -> None:
    """Measures the models of the gallery and writes what its page includes."""
    command = [sys.executable, "-m", "docs.gallery", "build/gallery.md"]
    subprocess.run(command, cwd=ROOT, check=True)


def adapt(app: Sphinx, path: Path, docname: str, content: list[str]) -> None:
    """A file at the root as a page includes it: links to pages, headings one level higher."""
    text = content[0]
    for name, page in PAGES.items():
        text = text.replace(f"]({name})", f"]({page})")
    content[0] = text.replace("\n### ", "\n## ") if path.name == "README.md" else text


def once(app: Sphinx, what: str, name: str, value: Any, skip: bool, options: Any) -> bool | None:
    """Leaves what is behind the front door to the page of the front door."""
    elsewhere = app.env.docname != "api/growth" and name in growth.__all__
    return True if elsewhere and getattr(growth, name) is value else None


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("config-inited", make_gallery)
    app.connect("include-read", adapt)
    app.connect("autodoc-skip-member", once)
