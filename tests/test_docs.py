"""The examples of the documentation run."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_examples_of_likelihoods():
    """All blocks in order, in one namespace, as a reader would type them."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/likelihoods.md").read_text(), re.S)
    assert len(blocks) == 4
    exec(compile("\n".join(blocks), "docs/likelihoods.md", "exec"), {})


def test_figures_exist():
    for page in (ROOT / "docs").rglob("*.md"):
        for target in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page.read_text()):
            assert (page.parent / target).exists(), (page.name, target)


def test_links_lead_somewhere():
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"(?<!!)\[[^]]*\]\(([^)#:]+\.md)\)", page.read_text()):
            assert (page.parent / target).exists(), (page.name, target)
