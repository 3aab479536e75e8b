"""The digest that a file carries of all its bytes, so that damage is found before it is read.

HDF5 may crash, or ask for endless memory, on bytes that are damaged, and it does not notice that a
number has changed. So nothing of a file is interpreted unless every byte is as it was written. The
digest is a text attribute of the root: whoever opens the file sees it, and it stays when the file
is opened for writing. HDF5 keeps such text apart from what it checks itself, so that it can be
filled in afterwards. In what is digested its own 64 characters are zeros.
"""

import hashlib
import re
import secrets

MARK = "nbln-sha256:"
LENGTH = 64
# Any characters may follow the mark, damaged ones too; within a lookahead no match hides another.
CARRIED = re.compile(b"(?=" + MARK.encode() + b"(.{64}))", re.DOTALL)


def blank() -> str:
    """The attribute before the digest is known: random, so that a file holds it only once."""
    return MARK + secrets.token_hex(LENGTH // 2)


def fill(content: bytearray, blank: str) -> None:
    """Put the digest of a file into the place of its blank."""
    start = content.index(blank.encode()) + len(MARK)
    content[start : start + LENGTH] = _of(content, start)


def intact(content: bytes) -> bool | None:
    """Whether the bytes of a file are those it was saved with; None if it carries no digest."""
    found = [match.start(1) for match in CARRIED.finditer(content)]
    if not found:
        return None
    return any(content[start : start + LENGTH] == _of(content, start) for start in found)


def _of(content: bytes | bytearray, start: int) -> bytes:
    """The digest of a file whose own digest begins at `start`."""
    view = memoryview(content)
    digest = hashlib.sha256(view[:start])
    digest.update(b"0" * LENGTH)
    digest.update(view[start + LENGTH :])
    return digest.hexdigest().encode()
