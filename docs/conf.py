"""How Sphinx makes the pages: `make docs` leaves them in site/html."""

import os
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import nbln

project = "nbln"
author = "The nbln developers"
copyright = f"2026, {author}"
release = version = nbln.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.intersphinx",
    "sphinxcontrib.katex",
    "sphinxcontrib.bibtex",
]
templates_path = ["_templates"]

# The theme

html_theme = "sphinx_book_theme"
html_title = f"nbln {release}"
html_static_path = ["_static"]
html_css_files = ["nbln.css"]
html_theme_options = {
    "show_toc_level": 2,
    "max_navbar_depth": 2,  # methods are in the tables of a page, not in the sidebar
    "use_download_button": False,
    "use_fullscreen_button": False,
    "navbar_persistent": [],  # the search is in the sidebar
}

# Markdown and notebooks

myst_enable_extensions = ["dollarmath", "amsmath", "deflist"]
myst_heading_anchors = 3
# Notebooks are run again when they change. An error in one of them is an error of the build.
nb_execution_mode = "cache"
nb_execution_raise_on_error = True
nb_execution_timeout = 300  # seconds a cell
nb_merge_streams = True
# Of kernels: without widgets tqdm says so, with the path of the machine.
os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"

# Docstrings: sections of numpydoc without types; single backticks are names of this package

default_role = "py:obj"
autosummary_generate = True
autosummary_ignore_module_all = False
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_default_options = {"show-inheritance": False}
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
napoleon_google_docstring = False
napoleon_use_rtype = False
# Here these hold sentences, which napoleon would take for names of types.
napoleon_custom_sections = ["Returns", "Reference"]

# Sources

bibtex_bibfiles = ["references.bib"]
bibtex_reference_style = "author_year"

# Names of other packages

INVENTORIES = {
    "python": "https://docs.python.org/3/",
    "numpy": "https://numpy.org/doc/stable/",
    "scipy": "https://docs.scipy.org/doc/scipy/",
    "pandas": "https://pandas.pydata.org/docs/",
    "xarray": "https://docs.xarray.dev/en/stable/",
    "matplotlib": "https://matplotlib.org/stable/",
    "anndata": "https://anndata.readthedocs.io/en/stable/",
    "jax": "https://docs.jax.dev/en/latest/",
    "numpyro": "https://num.pyro.ai/en/stable/",
}


def is_there(url: str) -> bool:
    """Whether an inventory can be had: one that cannot would be a warning, and fail the build."""
    request = urllib.request.Request(f"{url}objects.inv", method="HEAD")
    request.add_header("User-Agent", f"nbln-docs/{release}")
    try:
        with urllib.request.urlopen(request, timeout=5):
            return True
    except (urllib.error.URLError, OSError, ValueError):
        return False


with ThreadPoolExecutor(len(INVENTORIES)) as asked:
    found = dict(zip(INVENTORIES, asked.map(is_there, INVENTORIES.values()), strict=True))
intersphinx_mapping = {name: (url, None) for name, url in INVENTORIES.items() if found[name]}
intersphinx_timeout = 10
