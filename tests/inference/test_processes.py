"""Processes that fit together, and devices of one process, give the numbers of one."""

import os
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

import nbln
from nbln.inference.checkpoint import Checkpoint
from nbln.inference.stream import CellStream
from nbln.posterior.mode import Augmentation

# Chunks of 64 cells, the fewest there are, on any number of devices and for two processes: what
# draws random numbers by chunk draws the same.
SETTINGS = dict(latent_dim=3, laplace=nbln.LaplaceConfig(chunk_bytes=1), progress=False)
SCRIPT = f"""
import sys
import anndata, jax, nbln
import numpy as np
from nbln.inference.checkpoint import Checkpoint
from nbln.inference.laplace import iterations

port, number, path, folder = sys.argv[1:]
jax.distributed.initialize(f"localhost:{{port}}", 2, int(number), heartbeat_timeout_seconds=10)
adata = anndata.read_h5ad(path, backed="r")
settings = eval({str(SETTINGS)!r}, vars(nbln))
"""
WHOLE = """
step, calls = iterations.update, iter(range(10_000))

def interrupted(*arguments):
    if next(calls) == 9:
        raise RuntimeError("stopped on purpose")
    return step(*arguments)

iterations.update = interrupted
try:
    nbln.fit(adata, checkpoint=Checkpoint(f"{folder}/run.checkpoint", 0.0), **settings)
except RuntimeError as error:
    assert str(error) == "stopped on purpose"
iterations.update = step
fit = nbln.fit(adata, **settings)
try:
    nbln.fit(adata, model="nbdm", inference_method="mcmc")
except ValueError as error:
    assert "this job has 2" in str(error)
jax.distributed.shutdown()
fit.get_correlation()
fit.save(f"{folder}/fit{number}.nc")
"""
DYING = """
import os
from nbln.processes import current

processes = current()
try:
    with processes.telling():
        assert processes.decided(number == "0")
        if number == "1":
            os._exit(3)
        processes.check_same("", "nothing")
except ConnectionError as error:
    print(error, flush=True)
    os._exit(4)
"""


def devices(n):
    """What makes a process see `n` devices."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={n}"
    return {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}


def run_both(commands, environment):
    """Exit codes and outputs of the commands of processes 0 and 1."""
    started = [
        subprocess.Popen(
            command,
            env=os.environ | devices(1) | environment(number),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number, command in enumerate(commands)
    ]
    try:
        said = [process.communicate(timeout=240)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    return [process.returncode for process in started], said


def run_script(script, *arguments):
    """Both processes run a script."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    commands = [
        [sys.executable, "-c", SCRIPT + script, str(port), str(number), *map(str, arguments)]
        for number in (0, 1)
    ]
    return run_both(commands, lambda number: devices(2))


def assert_same(fit, other, tol):
    np.testing.assert_allclose(fit.get_correlation(), other.get_correlation(), atol=tol)
    for name in ("mu", "d", "r"):
        np.testing.assert_allclose(getattr(fit, name), getattr(other, name), rtol=tol, err_msg=name)
    for mine, others in zip(fit.cells, other.cells, strict=True):
        np.testing.assert_allclose(mine, others, atol=10 * tol, rtol=tol)


@pytest.fixture(scope="module")
def adata():
    return nbln.datasets.simulate(128, 40, 2, seed=1)


@pytest.fixture(scope="module")
def path(adata, tmp_path_factory):
    path = tmp_path_factory.mktemp("counts") / "counts.h5ad"
    adata.write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def alone(adata):
    return nbln.fit(adata, **SETTINGS)


@pytest.fixture(scope="module")
def folder(path, tmp_path_factory):
    """What two processes left: a checkpoint of a run that was interrupted, and a fit each."""
    folder = tmp_path_factory.mktemp("together")
    codes, said = run_script(WHOLE, path, folder)
    assert codes == [0, 0], said
    return folder


def test_two_processes_of_two_devices_give_the_numbers_of_one(alone, folder):
    first, second = (nbln.load(folder / f"fit{number}.nc") for number in (0, 1))
    assert first.converged
    assert len(first.trace) == len(alone.trace)
    assert_same(first, alone, 1e-4)
    assert_same(first, second, 0)


def test_one_process_goes_on_from_the_checkpoint_of_two(adata, alone, folder):
    file = folder / "run.checkpoint"
    with np.load(file) as saved:
        assert {saved[name].shape[-1] for name in saved.files if saved[name].ndim == 2} >= {128}
    resumed = nbln.fit(adata, checkpoint=Checkpoint(file), **SETTINGS)
    assert not file.exists()
    assert len(resumed.trace) == len(alone.trace)
    assert_same(resumed, alone, 1e-4)


def test_a_process_that_dies_ends_the_others(path, tmp_path):
    codes, said = run_script(DYING, path, tmp_path)
    # Where JAX hears of it before the sum that waits does, it ends the process itself.
    assert codes in ([4, 3], [-signal.SIGABRT, 3]), said
    if codes[0] == 4:
        assert "process 0 of 2 cannot go on, as a rule because another one has ended" in said[0]


def test_a_command_that_fails_ends_those_of_the_job(path, tmp_path):
    """Under the variables of SLURM, by which processes find one another."""

    def slurm(number):
        step = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_NODELIST": "localhost"}
        own = {"SLURM_PROCID": str(number), "SLURM_LOCALID": str(number)}
        return {"SLURM_NTASKS": "2", **step, **own}

    command = [sys.executable, "-m", "nbln.cli", "fit", "--distributed", "--out", str(tmp_path)]
    codes, said = run_both([[*command, str(path)], [*command, "gone.h5ad"]], slurm)
    assert codes == [1, 1], said
    assert "gone.h5ad: no such file" in said[1]
    assert "another one has ended" in " ".join(said[0].split())


def test_too_few_cells_for_so_many_processes(adata):
    from nbln.data.counts import Counts
    from nbln.processes import Alone

    class Many(Alone):
        count = 1000

    counts = Counts.from_anndata(adata)
    with pytest.raises(ValueError, match="128 cells are too few for 1000 processes"):
        CellStream(counts, Augmentation.of_offset(np.zeros(128)), 0, processes=Many())


DEVICES = f"""
import sys
import anndata, jax, nbln

adata, folder = anndata.read_h5ad(sys.argv[1]), sys.argv[2]
assert len(jax.devices()) == 4
fit = nbln.fit(adata, **eval({str(SETTINGS)!r}, vars(nbln)))
fit.save(f"{{folder}}/fit.nc")
"""
DRAWS = 'fit.sample_posterior(3, n_warmup=3, progress=False).save(f"{folder}/draws.nc")'


def on_four_devices(script, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env=os.environ | devices(4),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3_000:]


def test_four_devices_give_the_numbers_of_one(alone, path, tmp_path):
    on_four_devices(DEVICES, path, tmp_path)
    assert_same(nbln.load(tmp_path / "fit.nc"), alone, 1e-4)


@pytest.mark.slow  # a minute of compilation, twice
def test_four_devices_draw_what_one_draws(alone, path, tmp_path):
    on_four_devices(DEVICES + DRAWS, path, tmp_path)
    draws = alone.sample_posterior(3, n_warmup=3, progress=False)
    others = nbln.load(tmp_path / "draws.nc")
    leaves = jax.tree.leaves(draws.draws), jax.tree.leaves(others.draws)
    for mine, other in zip(*leaves, strict=True):
        # A proposal at the edge of its acceptance may fall the other way, for a gene or two.
        close = np.isclose(mine, other, atol=1e-2, rtol=1e-2)
        assert close.sum() >= 0.95 * close.size
