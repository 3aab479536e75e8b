"""The examples of the documentation run, and its pages leave out nothing that is public."""

import inspect
import re
import sys
import tomllib
import unicodedata
from functools import cached_property
from pathlib import Path

import pytest

import nbln
import nbln.distributions
from nbln import registry
from nbln.results.posterior import PosteriorDraws

ROOT = Path(__file__).parent.parent
MODULES = {
    "nbln": nbln,
    "nbln.pl": nbln.pl,
    "nbln.distributions": nbln.distributions,
    "nbln.datasets": nbln.datasets,
    "nbln.registry": nbln.registry,
}
# Priors and channels that a user may name or derive from, wherever they are.
NAMED = {
    *registry.LOADINGS_PRIORS.values(),
    *(row.program.channel for row in registry.MODELS.values() if hasattr(row.program, "channel")),
}
# What it is asked of is a class of users; what NumPyro and Equinox say of theirs is theirs.
CLASSES = {
    *(x for x in map(nbln.__dict__.get, nbln.__all__) if inspect.isclass(x)),
    PosteriorDraws,
    registry.Row,
}


def documented():
    """Full names of all that the pages of the API list."""
    found = set()
    for page in (ROOT / "docs" / "api").glob("*.md"):
        module, listing = "", False
        for line in page.read_text().splitlines():
            word = line.strip()
            if named := re.match(r"\.\. currentmodule:: (.+)", word):
                module = named[1]
            elif named := re.match(r"\.\. auto(?:class|data):: (.+)", word):
                found.add(named[1])
            elif word.startswith(".. "):
                listing = word == ".. autosummary::"
            elif listing and re.fullmatch(r"~?[\w.]+", word):
                found.add(f"{module}.{word.lstrip('~')}")
    return found


def questions(kind):
    """Public methods and properties, inherited ones included."""
    asked = (property, cached_property, classmethod, staticmethod)
    for name in dir(kind):
        own = inspect.getattr_static(kind, name)
        if not name.startswith("_") and (inspect.isfunction(own) or isinstance(own, asked)):
            yield name


def test_pages_list_all_that_is_public():
    listed = documented()
    modules = {name for name, x in MODULES.items() if name != "nbln"}
    wanted = {f"{name}.{member}" for name, module in MODULES.items() for member in module.__all__}
    wanted |= {f"{x.__module__}.{x.__name__}" for x in NAMED}
    for kind in CLASSES:
        home = "nbln" if getattr(nbln, kind.__name__, None) is kind else kind.__module__
        wanted |= {f"{home}.{kind.__name__}.{name}" for name in questions(kind)}
    assert not sorted(wanted - listed - modules)


def test_pages_list_what_is_there():
    """A name on a page that is gone would fail the build; here it fails at once."""
    for full in documented():
        module, _, name = full.rpartition(".")
        while module not in sys.modules:
            module, _, more = module.rpartition(".")
            name = f"{more}.{name}"
        found = sys.modules[module]
        for part in name.split("."):
            found = inspect.getattr_static(found, part)


def test_all_that_is_public_says_what_it_is():
    for kind in CLASSES:
        assert inspect.getdoc(kind), kind
        for name in questions(kind):
            assert inspect.getdoc(getattr(kind, name)), f"{kind.__name__}.{name}"
    for module in MODULES.values():
        for name in module.__all__:
            x = getattr(module, name)
            assert not callable(x) or inspect.getdoc(x), name


CITED = re.compile(
    r"([A-Z][^\W\dA-Z]\w*)(?:,? (?:[A-Z][\w-]+,? ?)*(?:& |and )[A-Z]\w+| et al\.)?,? \(?"
    r"((?:19|20)\d\d)\b"
)


def test_sources_are_listed():
    """An author and a year in a docstring is the key of an entry: the first surname, the year."""
    keys = set(re.findall(r"@\w+\{(\w+),", (ROOT / "docs" / "references.bib").read_text()))
    for page in (ROOT / "docs").rglob("*.md"):
        for role in re.findall(r"\{cite:\w+\}`([^`]+)`", page.read_text()):
            assert set(role.split(",")) <= keys, (page.name, role)
    for file in (ROOT / "nbln").rglob("*.py"):
        text = re.sub(r"\s*\n\s*(?:# )?", " ", file.read_text())
        for name, year in CITED.findall(text):
            plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
            assert plain + year in keys, (file.name, name, year)


@pytest.mark.parametrize(
    ("page", "n_blocks"),
    [
        ("likelihoods.md", 4),
        ("models/scvi.md", 3),
        pytest.param("models/negbio_vae.md", 2, marks=pytest.mark.slow),
    ],
)
def test_examples(page, n_blocks, tmp_path, monkeypatch):
    """All blocks in order, in one namespace, as a reader would type them."""
    monkeypatch.chdir(tmp_path)  # some write files
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.S)
    assert len(blocks) == n_blocks
    exec(compile("\n".join(blocks), f"docs/{page}", "exec"), {})


def test_figures_exist():
    for page in (ROOT / "docs").rglob("*.md"):
        for target in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page.read_text()):
            assert (page.parent / target).exists(), (page.name, target)


def test_links_lead_somewhere():
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"(?<!!)\[[^]]*\]\(([^)#:]+\.md)\)", page.read_text()):
            assert (page.parent / target).exists(), (page.name, target)


def test_versions_and_requirements_agree():
    """Of the package, its changelog and the conda recipe."""
    recipe = (ROOT / "recipe" / "meta.yaml").read_text()
    assert f'version = "{nbln.__version__}"' in recipe
    changelog = (ROOT / "docs" / "changelog.md").read_text()
    assert f"## {nbln.__version__} " in changelog
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    listed = recipe[recipe.index("  run:") : recipe.index("\ntest:")]
    for requirement in (*wanted, "python>=3.11"):
        name, _, version = requirement.partition(">=")
        assert re.search(rf"- {name}(-base)? >={re.escape(version)}\n", listed), requirement


def test_pages_name_no_place_of_one_machine():
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        assert not re.search(r"(?<![\w.])/(home|tmp|root|work|Users)/", page.read_text()), page
