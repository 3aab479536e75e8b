"""Commands that are stopped, or of whose files one cannot be written."""

import random
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from typer.testing import CliRunner

import nbln
from nbln import cli, outputs
from nbln.session import Outputs

N_CELLS, N_GENES = 150, 80


@pytest.fixture(scope="module")
def h5ad(tmp_path_factory):
    path = tmp_path_factory.mktemp("input") / "counts.h5ad"
    nbln.datasets.simulate(N_CELLS, N_GENES, 2, seed=1).write_h5ad(path)
    return path


def invoke(*arguments):
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, " ".join(result.output.split())


def broken(*arguments, **keywords):
    raise RuntimeError("no font")


@pytest.mark.parametrize(
    ("owner", "name", "lost"),
    [
        (outputs.webpage, "page", outputs.REPORT),
        pytest.param(nbln.LaplaceResult, "top_pairs", outputs.PAIRS, marks=pytest.mark.slow),
        pytest.param(nbln.LaplaceResult, "sample_posterior", outputs.DRAWS, marks=pytest.mark.slow),
        pytest.param(nbln.LaplaceResult, "save", outputs.FIT, marks=pytest.mark.slow),
        pytest.param(nbln.LaplaceResult, "write_to", outputs.FITTED, marks=pytest.mark.slow),
    ],
)
@pytest.mark.usefixtures("undrawn")
def test_a_file_that_fails_takes_no_other_along(h5ad, tmp_path, monkeypatch, owner, name, lost):
    command = ["fit", h5ad, "--out", tmp_path, "--latent-dim", 3, "--no-progress"]
    wanted = {outputs.FIT, outputs.FITTED, outputs.PAIRS, outputs.REPORT} - {lost}
    if lost == outputs.DRAWS:
        command += ["--draws", 5]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, broken)
        code, text = invoke(*command)
    assert code == 1
    assert re.search(r"NOT written .*RuntimeError: no font", text)
    left = {path.name for path in tmp_path.iterdir()}
    if name == "top_pairs":
        wanted -= {outputs.REPORT}  # which shows them
    assert wanted <= left
    assert lost not in left
    # What was computed is kept for another try.
    monkeypatch.setattr("nbln.inference.svi.engine._run_block", None)
    code, _ = invoke(*command)
    assert code == 0
    assert not list(tmp_path.glob("*.checkpoint"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--out", ""), "an empty name"),
        (("--seed", -1), "whole number"),
        (("--seed", 2**32), "a seed is at most 4294967294"),
    ],
)
def test_arguments_out_of_range(h5ad, arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, text = invoke("fit", h5ad, *arguments)
    assert code in (1, 2)
    assert words in re.sub(r"[│╭╰─╮╯]", "", text)


def test_a_directory_that_cannot_be_written_to_is_told_before_the_fit(h5ad, tmp_path, monkeypatch):
    def full(**keywords):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(outputs.tempfile, "TemporaryFile", full)
    monkeypatch.setattr(nbln, "fit", None)
    code, text = invoke("fit", h5ad, "--out", tmp_path)
    assert code == 1
    assert "No space left on device" in text


def test_what_a_stopped_command_says(tmp_path):
    outputs = Outputs(debug=False)
    assert outputs.stopped() == "Nothing was kept."
    with outputs.writing(tmp_path / "a", "a file"):
        pass
    assert outputs.stopped() == f"Kept: {tmp_path / 'a'}."
    checkpoint = outputs.checkpoint(tmp_path / "fit.nc")
    checkpoint.path.touch()
    assert "the same command goes on from there" in outputs.stopped()


# A test that runs in the background inherits that Ctrl-C is to be ignored.
HEEDFUL = """
import runpy, signal, sys
sys.argv[0] = "nbln"  # as the shell names it
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("nbln.cli", run_name="__main__")
"""


def command(h5ad, out):
    arguments = ["fit", h5ad, "--out", out, "--latent-dim", "3", "--draws", "20", "--seed", "1"]
    return [sys.executable, "-c", HEEDFUL, *map(str, arguments)]


def started(arguments):
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def stopped_after(arguments, seconds, number):
    """Exit code and output of a command that gets a signal, unless it ended before."""
    with started(arguments) as process:
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(number)
        text, _ = process.communicate()
    return process.returncode, text


def interrupted_at(arguments, word):
    """Exit code of a command that gets Ctrl-C when it says `word`, and what it says after it."""
    with started(arguments) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if word in line:
                break
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
    return process.returncode, rest


def test_ctrl_c_is_one_line(h5ad, tmp_path):
    code, rest = interrupted_at(command(h5ad, tmp_path / "out"), "Fitting")
    assert code == 130
    assert "Stopped by SIGINT" in rest
    assert "Traceback" not in rest


ENDING = """
import atexit, time

def end():
    print("ending", flush=True)
    time.sleep(1)

atexit.register(end)
"""


def test_a_signal_after_all_is_written_changes_nothing(h5ad, tmp_path):
    python, flag, code, *arguments = command(h5ad, tmp_path / "out")
    arguments = [*arguments[: arguments.index("--latent-dim")], "--model", "nbvcp"]
    assert interrupted_at([python, flag, ENDING + code, *arguments], "ending") == (0, "")


@pytest.mark.slow
def test_stopped_at_random_moments_a_command_goes_on(h5ad, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "out"
    began = time.monotonic()
    subprocess.run(command(h5ad, whole), check=True, capture_output=True)
    seconds = time.monotonic() - began
    random.seed(0)
    codes = []
    for _ in range(20):
        number = random.choice([signal.SIGINT, signal.SIGTERM])
        # From when the command has started to import its libraries.
        code, text = stopped_after(command(h5ad, out), seconds * random.uniform(0.25, 0.8), number)
        assert code in (0, 128 + number), text
        assert "Traceback" not in text
        assert code == 0 or f"Stopped by {number.name}" in text
        codes.append(code)
    assert any(codes)
    subprocess.run(command(h5ad, out), check=True, capture_output=True)
    a, b = (nbln.load(folder / "draws.nc").draws for folder in (whole, out))
    np.testing.assert_array_equal(a.W, b.W)
    np.testing.assert_array_equal(a.d, b.d)
