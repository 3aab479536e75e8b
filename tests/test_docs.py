"""The examples of the documentation run."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("page", "n_blocks"),
    [("likelihoods.md", 4), ("models/scvi.md", 3), ("models/negbio_vae.md", 2)],
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
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"(?<!!)\[[^]]*\]\(([^)#:]+\.md)\)", page.read_text()):
            assert (page.parent / target).exists(), (page.name, target)
