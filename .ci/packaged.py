"""Check what `make package` has built and installed: python -I .ci/packaged.py dist"""

import sys
import tarfile
import zipfile
from importlib.metadata import version
from pathlib import Path

import nbln

WANTED = ("nbln/py.typed", "nbln/templates/report.html.jinja", "nbln/cli.py")
UNWANTED = ("tests/", "docs/", "benchmarks/", ".ci/")


def main(folder: Path) -> None:
    (wheel,) = folder.glob("*.whl")
    (source,) = folder.glob("*.tar.gz")
    names = zipfile.ZipFile(wheel).namelist()
    for name in WANTED:
        assert name in names, f"{wheel.name} lacks {name}"
    for name in names:
        assert not name.startswith(UNWANTED), f"{wheel.name} holds {name}"
    with tarfile.open(source) as files:
        inside = {name.partition("/")[2] for name in files.getnames()}
    for name in (*WANTED, "pyproject.toml", "LICENSE", "README.md", "tests/test_docs.py"):
        assert name in inside, f"{source.name} lacks {name}"
    home = Path(nbln.__file__)
    assert "site-packages" in home.parts, f"imported from {home}, not from the wheel"
    assert version("nbln") == nbln.__version__, "the version is not that of the wheel"
    for name in nbln.__all__:
        getattr(nbln, name)
    adata = nbln.datasets.simulate(n_cells=60, n_genes=20, n_programs=1)
    fit = nbln.fit(adata, model="nbvcp", n_steps=50, progress=False)
    assert fit.get_map().sizes["gene"] == 20
    print(f"nbln {nbln.__version__}: {len(names)} files in the wheel, {len(inside)} in the source")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
