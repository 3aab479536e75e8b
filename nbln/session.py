"""A command as the shell sees it: notes and errors, signals, and files that fail one by one."""

import logging
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import rich
import typer
from rich.console import Console
from rich.highlighter import NullHighlighter
from rich.logging import RichHandler
from rich.table import Table
from rich.text import Text

from nbln import compiled, processes
from nbln.inference.checkpoint import Checkpoint
from nbln.text import visible

# What the library and the file system raise for reasons that are the user's to mend.
USER_ERRORS = (ValueError, KeyError, TypeError, FloatingPointError, OSError, MemoryError)
SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
RETRY_SECONDS = 0.05
PROGRAMS = ("nbln", "nbln.exe", "cli.py")  # by which names a process is nothing but a command


class Line(logging.Formatter):
    """A note of the library as one line of printable characters: notes quote names from data."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The message alone; a traceback that comes with it keeps its lines."""
        return visible(super().formatMessage(record))


class Stopped(KeyboardInterrupt):
    """A signal to stop; what runs treats it like Ctrl-C."""

    def __init__(self, number: int):
        self.number = number


class Outputs:
    """The files of a command: each is written whatever becomes of the others."""

    def __init__(self, debug: bool):
        self._debug = debug
        self._began = time.perf_counter() - _age()
        self._fitting = 0.0
        self._written: list[tuple[Path, str]] = []
        self._failed: list[tuple[Path, str]] = []
        self._checkpoints: list[Path] = []

    def checkpoint(self, output: Path) -> Checkpoint:
        """Where the work for a file is kept until the command is complete."""
        path = output.with_suffix(".checkpoint")
        self._checkpoints.append(path)
        return Checkpoint(path, keep=True)

    @contextmanager
    def fitting(self) -> Iterator[None]:
        """Fit; how long it takes is told at the end. Of several processes one goes on from here."""
        began = time.perf_counter()
        yield
        self._fitting += time.perf_counter() - began
        if not processes.part():
            raise typer.Exit

    @contextmanager
    def writing(self, path: Path, what: str) -> Iterator[None]:
        """Make and write one file; an error is told at the end."""
        try:
            yield
        except Exception as error:
            if self._debug:
                raise
            self._failed.append((path, message_of(error)))
        else:
            self._written.append((path, what))

    def failure(self, path: Path) -> str:
        """Why a file was not written; '' where it was, or was not tried."""
        return dict(self._failed).get(path, "")

    def finish(self) -> None:
        """Name what was written and what was not; exit with 1 where something was not."""
        self._list("Written", self._written, "bold")
        if self._failed:
            self._list("NOT written", self._failed, "bold red")
            if self._kept():
                say("The same command tries again, without fitting again.")
            raise typer.Exit(1)
        for path in self._checkpoints:
            path.unlink(missing_ok=True)
        total = time.perf_counter() - self._began
        rich.get_console().print()
        say(f"The command took {total:.1f} s, of which fitting took {self._fitting:.1f} s.")

    def stopped(self) -> str:
        """What a command that is stopped leaves, in a sentence."""
        if kept := self._kept():
            return f"Kept: {', '.join(kept)}; the same command goes on from there."
        if self._written:
            return f"Kept: {', '.join(str(path) for path, _ in self._written)}."
        return "Nothing was kept."

    def _kept(self) -> list[str]:
        return [str(path) for path in self._checkpoints if path.exists()]

    def _list(self, title: str, paths: list[tuple[Path, str]], style: str) -> None:
        rich.get_console().print()
        say(title, style)
        table = Table.grid(padding=(0, 2))
        for path, what in paths:
            table.add_row(Text(visible(path), overflow="fold"), Text(visible(what)))
        rich.get_console().print(table)


def _alone() -> bool:
    """Whether this process is the command, and nothing else: in a notebook it is not."""
    return Path(sys.argv[0]).name in PROGRAMS


def _age() -> float:
    """Seconds from the start of this process, loading of packages included, where it is known."""
    if not _alone():
        return 0.0
    try:
        # The 22nd field of proc_pid_stat(5): clock ticks from the start of the system.
        started = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError, IndexError):
        return 0.0


def say(text: str, style: str = "") -> None:
    """Print a line; what could command the terminal is shown in its place."""
    rich.get_console().print(Text(visible(text), style=style))


def message_of(error: BaseException) -> str:
    """An error in one paragraph."""
    if isinstance(error, MemoryError):
        return "not enough memory; try gene_coverage (--gene-coverage) or a backed file (--backed)"
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    return text if isinstance(error, USER_ERRORS) and text else f"{type(error).__name__}: {text}"


@contextmanager
def session(debug: bool, distributed: bool = False) -> Iterator[Outputs]:
    """Notes of the library on the terminal, errors as one paragraph, a signal as one line.

    With `distributed`, this is one of the processes of a job, of which the first speaks.
    """
    outputs = Outputs(debug)
    if _alone():
        compiled.keep()
    try:
        with _notes(), _signals(), warnings.catch_warnings():
            # The library's own message says more.
            warnings.filterwarnings("ignore", message=".* names are not unique", module="anndata")
            if distributed:
                rich.get_console().quiet = not processes.join().first
            yield outputs
            outputs.finish()
    except Stopped as stop:
        name = signal.Signals(stop.number).name
        _stderr(f"Stopped by {name}. {outputs.stopped()}")
        # An ordinary exit would wait for threads that still compute, or crash among them.
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(128 + stop.number)
    except USER_ERRORS as error:
        if debug:
            _end_job(error)
            raise
        _stderr(f"Error: {message_of(error)}")
        _end_job()
        raise typer.Exit(1) from None
    except typer.Exit:
        raise
    except Exception as error:
        _end_job(error)
        raise


def _end_job(error: Exception | None = None) -> None:
    """Leave at once where others wait for this process: an ordinary exit would wait for them."""
    if jax.distributed.is_initialized():
        if error is not None:
            traceback.print_exception(error)
        sys.stderr.flush()
        os._exit(1)


def _stderr(text: str) -> None:
    Console(stderr=True).print(Text(visible(text), style="red"))


@contextmanager
def _notes() -> Iterator[None]:
    # The console of the progress bars, so that a note does not tear a bar apart.
    notes = RichHandler(
        console=rich.get_console(), show_time=False, show_path=False, highlighter=NullHighlighter()
    )
    notes.setFormatter(Line())
    log = logging.getLogger("nbln")
    level = log.level
    log.addHandler(notes)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(notes)
        log.setLevel(level)


@contextmanager
def _signals() -> Iterator[None]:
    """Signals to stop as `Stopped`, those aside that the shell lets a command ignore."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
    old = {n: signal.getsignal(n) for n in numbers if signal.getsignal(n) != signal.SIG_IGN}

    def stop(number, frame):
        raise Stopped(number)

    def once_more(unraisable):
        # A collector of garbage, or the like, has swallowed the exception: the signal comes again.
        if isinstance(unraisable.exc_value, Stopped):
            again = os.getpid(), unraisable.exc_value.number
            threading.Timer(RETRY_SECONDS, os.kill, again).start()
        else:
            hook(unraisable)

    hook, sys.unraisablehook = sys.unraisablehook, once_more
    for number in old:
        signal.signal(number, stop)
    ended = False
    try:
        yield
        ended = _alone()
    except typer.Exit:
        ended = _alone()
        raise
    finally:
        sys.unraisablehook = hook
        for number, handler in old.items():
            # All is said and done: what a signal would still stop is the interpreter's own end.
            signal.signal(number, signal.SIG_IGN if ended else handler)
