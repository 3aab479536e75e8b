"""A file that appears whole or not at all."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from nbln.arguments import check_folder


def write(path: str | os.PathLike, data: bytes | memoryview) -> None:
    """Write a file in one piece; see `replacing`."""
    with replacing(path) as file:
        file.write(data)


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A file to write in, which then takes the place of an old one; see `beside`."""
    with beside(path) as partial, partial.open("wb") as file:
        yield file


@contextmanager
def beside(path: str | os.PathLike) -> Iterator[Path]:
    """A path beside a file, to write to; then it is flushed to the disk and replaces the file.

    The permissions of an old file stay, and a symbolic link stays one. Where anything fails, a full
    disk or an interruption, the old file is as it was.

    Raises
    ------
    FileNotFoundError
        There is no such folder.
    OSError
        The file cannot be written.
    """
    target = Path(os.path.realpath(check_folder(str(path), Path(path))))
    # Nobody can lay a file or a link under a name that nobody can guess; O_EXCL refuses one.
    partial = target.with_name(f".nbln-{secrets.token_hex(8)}.partial")
    os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        if target.exists():
            os.chmod(partial, target.stat().st_mode & 0o7777)
        os.replace(partial, target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
