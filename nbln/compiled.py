"""How programs are compiled, and kept between runs of a command in the user's cache directory.

The next run is spared a fifth of the time of a first one on a thousand cells. JAX looks an entry up
by the program, its own version, the flags of XLA and the kind of device, but not by what the
processor can do: what was compiled for another may crash, so that each kind of processor has a
directory of its own.
"""

import hashlib
import os
import platform
import stat
import time
from collections.abc import Callable
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jaxlib

# Compiles what takes long to compile and no time to run, an update of parameters say, in half the
# time; it then runs by a third longer, half a millisecond of 300 genes.
QUICK = {
    "xla_backend_optimization_level": 1,
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
}
# Compiles in a quarter of the time of that; loops over entries then take up to eight times as long.
ONCE = {**QUICK, "xla_backend_optimization_level": 0}
# Seconds of compilation from which a program is kept. JAX's 1 would leave out most of those of a
# small data set, which take 0.1 to 1 each; an entry is read in a hundredth of that.
LEAST_SECONDS = 0.1
# Days after which an entry is removed: those of data that are still worked on are compiled anew,
# once a month, and others do not stay for ever.
MOST_DAYS = 30


def quick_jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """`equinox.filter_jit` with less optimisation, of what runs a few times on small arrays."""
    return _jit(function, QUICK)


def once_jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """`equinox.filter_jit` without optimisation, of what a fit runs once, or a few times."""
    return _jit(function, ONCE)


def _jit(function: Callable[..., Any], options: dict[str, Any]) -> Callable[..., Any]:
    @lru_cache
    def compiled():
        return eqx.filter_jit(function, **_known(**options))

    # XLA is asked when the function is first called, since asking starts JAX.
    return wraps(function)(lambda *arguments: compiled()(*arguments))


@lru_cache
def _known(**options: Any) -> dict[str, Any]:
    """Keywords of `jax.jit` with these options of XLA; none where it does not know them.

    What the user has set in ``XLA_FLAGS`` stands.
    """
    given = os.environ.get("XLA_FLAGS", "")
    options = {name: value for name, value in options.items() if name not in given}
    try:
        jax.jit(lambda: 0, compiler_options=options).lower().compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return {"compiler_options": options}


def keep() -> Path | None:
    """Keep what is compiled, unless the user has said where JAX does, or that it does not.

    ``JAX_ENABLE_COMPILATION_CACHE=false`` turns it off, ``JAX_COMPILATION_CACHE_DIR`` is another
    place. A directory that cannot be made, or that others can write to, is not used.

    Returns
    -------
    The directory; None where there is none, or one of the user's own.
    """
    own = jax.config.jax_compilation_cache_dir, not jax.config.jax_enable_compilation_cache  # pyright: ignore
    if any(own):
        return None
    try:
        place = _private(cache_directory() / "nbln" / "compiled" / _processor())
    except (OSError, RuntimeError):  # without a home there is no place
        return None
    if place is None:
        return None
    _forget(place)
    jax.config.update("jax_compilation_cache_dir", str(place))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST_SECONDS)
    return place


def cache_directory() -> Path:
    """Where programs keep what they can make again (XDG Base Directory Specification)."""
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return given if given.is_absolute() else Path.home() / ".cache"


def _private(place: Path) -> Path | None:
    """The directory, made for its owner alone; None where somebody else could put code into it."""
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = place.stat()
    shared = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    another = hasattr(os, "getuid") and found.st_uid != os.getuid()
    return None if shared or another else place


def _processor() -> str:
    """A word for this kind of processor, and for what compiles."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = [platform.processor()]
    able = sorted({x for x in lines if x.lower().startswith(("flags", "features", "model name"))})
    known = platform.machine(), jaxlib.__version__, *(able or lines)
    return hashlib.sha256("\n".join(known).encode()).hexdigest()[:16]


def _forget(place: Path) -> None:
    """Remove what is old; another command may do so at the same time."""
    oldest = time.time() - MOST_DAYS * 24 * 3600
    for entry in place.iterdir():
        if entry.is_file() and entry.stat().st_mtime < oldest:
            entry.unlink(missing_ok=True)
