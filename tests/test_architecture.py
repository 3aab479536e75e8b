"""The house rules of imports: floors, no circles, and what may appear where."""

import ast
from pathlib import Path

import pytest

import nbln

ROOT = Path(nbln.__file__).parent
# Bottom to top; a name is a folder or a file of the package.
FLOORS = (
    ("vocabulary", "arguments", "atomic", "compiled", "processes", "progress", "text"),
    ("data", "distributions", "linalg"),
    ("priors",),
    ("channels",),
    ("posterior",),
    ("models",),
    ("registry",),
    ("inference",),
    ("questions",),
    ("results",),
    ("vae",),
    ("cascade",),
    ("plan", "options"),
    ("amortised", "log_normal", "sampled"),
    ("api", "datasets"),
    ("pl", "report"),
    ("webpage",),
    ("session", "splitting"),
    ("terminal",),
    ("outputs",),
    ("cli_options",),
    ("cli",),
)
MOST_LINES = {"file": 400, "function": 60}  # docstrings of functions aside
LEVEL = {name: level for level, floor in enumerate(FLOORS) for name in floor}
FILES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")
each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))


def module_of(path):
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path) for path in ROOT.rglob("*.py")}


def statements(tree):
    """Statements that run when the module is imported: all but the bodies of functions."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        yield node
        yield from statements(node)


def imported(nodes):
    """Full names of what is imported: `from a import b` gives `a.b`."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_modules(path):
    """The modules of the package that a file imports, anywhere in it."""
    for name in imported(ast.walk(ast.parse(path.read_text()))):
        while name.startswith("nbln") and name not in MODULES:
            name = name.rpartition(".")[0]
        if name.startswith("nbln."):
            yield name


def attribute_names(nodes):
    """Dotted names such as `jax.config.update`."""
    return {ast.unparse(node) for node in nodes if isinstance(node, ast.Attribute)}


def place(module):
    return module.split(".")[1]


def inside(path, *places):
    relative = path.relative_to(ROOT).as_posix()
    return any(relative == p or relative.startswith(f"{p}/") for p in places)


@each_file
def test_every_file_has_a_floor(path):
    assert place(module_of(path)) in LEVEL


@each_file
def test_no_arrow_goes_up(path):
    here = place(module_of(path))
    for module in own_modules(path):
        there = place(module)
        assert there == here or LEVEL[there] <= LEVEL[here], f"{here} imports {module}"


def test_no_circle():
    arrows = {module_of(path): set(own_modules(path)) - {module_of(path)} for path in FILES}
    done = set()

    def visit(module, way):
        assert module not in way, " -> ".join([*way, module])
        if module not in done:
            for other in sorted(arrows.get(module, ())):
                visit(other, (*way, module))
            done.add(module)

    for module in sorted(arrows):
        visit(module, ())


RESTRICTED = {
    "anndata": ("data", "datasets.py", "results/export.py"),
    "matplotlib": ("pl",),
    "numpyro.handlers": ("models", "inference", "vae"),
    "numpyro.infer": ("models", "inference", "vae"),
}


@each_file
@pytest.mark.parametrize("what", RESTRICTED)
def test_appears_only_where_it_belongs(path, what):
    nodes = list(ast.walk(ast.parse(path.read_text())))
    found = {*imported(nodes), *attribute_names(nodes)}
    used = any(name == what or name.startswith(f"{what}.") for name in found)
    assert not used or inside(path, *RESTRICTED[what])


@each_file
def test_importing_changes_no_global_state(path):
    running = list(statements(ast.parse(path.read_text())))
    names = {*attribute_names(running), *imported(running)}
    assert not any(name.endswith("config.update") for name in names)


@each_file
def test_slow_imports_wait_until_used(path):
    if inside(path, "pl"):
        return
    running = imported(statements(ast.parse(path.read_text())))
    assert not {name.split(".")[0] for name in running} & {"arviz", "matplotlib"}


@each_file
def test_files_and_functions_are_short(path):
    text = path.read_text()
    assert text.count("\n") <= MOST_LINES["file"]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            first, *_ = node.body
            documented = ast.get_docstring(node) is not None
            skipped = first.end_lineno - first.lineno + 1 if documented else 0
            length = node.end_lineno - node.lineno + 1 - skipped
            assert length <= MOST_LINES["function"], node.name


WHO = ("nbln", "pln", "nbvcp", "scvi", "svi", "laplace", "vae", "ae")


@each_file
def test_nobody_asks_which_model_it_is(path):
    """No comparison with the name of a model or an engine; the registry and plans look them up."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            texts = {side.value for side in sides if isinstance(side, ast.Constant)}
            assert not texts & set(WHO), ast.unparse(node)
