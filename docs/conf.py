"""How Sphinx makes the pages: `make docs` leaves them in site/html."""

import inspect
import os
import re
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

import nbln
from nbln.results.answers import Answers

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
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True  # a list of fields, in which types are those of the signature
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

# Results come from `fit`: nobody calls their class, and their fields are told by several classes.

FIELDS = "Attributes\n----------\n"


def is_result(kind: object) -> bool:
    """Whether it is a class of results."""
    return inspect.isclass(kind) and issubclass(kind, Answers)


def without_signature(app, what, name, kind, options, signature, returned):
    """No arguments for a class that `fit` makes."""
    return ("", None) if is_result(kind) else None


def parted(doc: str) -> tuple[str, list[tuple[str, str]], str]:
    """What a docstring says before its fields, the fields as (names, text), and what follows."""
    before, _, rest = doc.partition(FIELDS)
    section = re.search(r"^\w+\n-{3,}$", rest, re.M)
    end = section.start() if section else len(rest)
    return before, re.findall(r"^(\S.*)\n((?: .*\n?|\n)*)", rest[:end], re.M), rest[end:]


def with_all_fields(app, what, name, kind, options, lines):
    """Fields that the bases of a result describe, after its own; each by itself."""
    if not inspect.isclass(kind):
        return
    before, fields, after = parted("\n".join(lines) + "\n")
    if is_result(kind):
        for base in kind.__mro__[1:]:
            fields += parted(inspect.cleandoc(base.__doc__ or "") + "\n")[1]
    asked = (property, cached_property)  # which have pages of their own
    told = {n for n in dir(kind) if isinstance(inspect.getattr_static(kind, n), asked)}
    if fields:
        lines[:] = [*before.splitlines(), "", *FIELDS.splitlines()]
    for names, text in fields:
        for one in (one for one in names.split(", ") if one not in told):
            lines += [one, *text.strip("\n").splitlines()]
            told.add(one)
    if fields:
        lines += ["", *after.splitlines(), ""]


def setup(app):
    """Hooks of autodoc, before napoleon reads a docstring."""
    app.connect("autodoc-process-signature", without_signature)
    app.connect("autodoc-process-docstring", with_all_fields, priority=100)
