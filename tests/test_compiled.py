"""What a command compiles is kept for the next one, where nobody else can write."""

import os
import subprocess
import sys

import pytest

# In processes of their own: where JAX keeps what it compiles is set once.
PROGRAM = """
import jax
from nbln import compiled
print(compiled.keep())
jax.jit(lambda x: jax.numpy.linalg.svd(x @ x)[1])(jax.numpy.eye(7)).block_until_ready()
print(jax.config.jax_compilation_cache_dir)
"""


def run(cache, program=PROGRAM, **variables):
    given = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    environment = given | {"XDG_CACHE_HOME": str(cache)} | variables
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def test_programs_are_kept_for_the_user_alone(tmp_path):
    kept = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    place, used = run(tmp_path, **kept)
    assert place == used
    assert place.startswith(str(tmp_path / "nbln" / "compiled"))
    assert os.stat(place).st_mode & 0o077 == 0
    entries = set(os.listdir(place))
    assert entries
    old = next(iter(entries))
    os.utime(os.path.join(place, old), (0, 0))
    run(tmp_path, **kept)
    assert entries == set(os.listdir(place))  # the old one was removed, and made again
    assert os.stat(os.path.join(place, old)).st_mtime > 0


@pytest.mark.parametrize(
    ("variables", "used"),
    [
        pytest.param({"JAX_ENABLE_COMPILATION_CACHE": "false"}, "None", marks=pytest.mark.slow),
        ({"JAX_COMPILATION_CACHE_DIR": "{}/mine"}, "{}/mine"),
    ],
)
def test_the_user_decides_by_the_variables_of_jax(tmp_path, variables, used):
    given = {name: value.format(tmp_path) for name, value in variables.items()}
    assert run(tmp_path, **given) == ["None", used.format(tmp_path)]
    assert not (tmp_path / "nbln").exists()


def test_a_directory_that_others_write_to_is_not_used(tmp_path):
    (place, _) = run(tmp_path)
    os.chmod(place, 0o777)
    assert run(tmp_path) == ["None", "None"]


def test_without_a_place_nothing_is_kept(tmp_path):
    (tmp_path / "file").write_text("")
    assert run(tmp_path / "file") == ["None", "None"]
