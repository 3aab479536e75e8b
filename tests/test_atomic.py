"""A file appears whole or not at all."""

import os
import resource
import signal
import stat
from contextlib import contextmanager

import pytest

from nbln import atomic


@contextmanager
def limited(size):
    """A disk on which a file cannot be larger than this."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, ignored)


def write_into(path, data):
    with atomic.beside(path) as partial:
        partial.write_bytes(data)


def test_an_old_file_keeps_its_mode_and_a_link_stays_a_link(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"old")
    target.chmod(0o640)
    link.symlink_to(target)
    atomic.write(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "target"]


def test_a_new_file_obeys_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        atomic.write(tmp_path / "new", b"")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640


@pytest.mark.parametrize("how", [write_into, atomic.write])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, how):
    target = tmp_path / "target"
    target.write_bytes(b"old")
    with limited(100), pytest.raises(OSError, match="File too large"):
        how(target, bytes(1000))
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
