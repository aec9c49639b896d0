"""Turns the end of a command into an exit code, and an error into one line.

Exit codes: 0 done, 2 an error that the user can mend, 130 interrupted. A bug of echox keeps its
traceback and exits with 1.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable

from echox.core.errors import EchoxError
from echox.core.memory import is_out_of_memory, out_of_memory_text
from echox.core.packages import library_fault

# Faults of the machine rather than of the program: each is one sentence of the operating system,
# here with the way out.
_WAYS_OUT = {
    errno.ENOSPC: "free some space or choose another folder",
    errno.EDQUOT: "free some space or choose another folder",
    errno.EROFS: "choose a folder that can be written",
    # A file in place of a folder is ENOTDIR on the way to it, and EEXIST where it is made.
    errno.ENOTDIR: "a file stands where a folder is needed, so move it or choose another folder",
    errno.EEXIST: "a file stands where a folder is needed, so move it or choose another folder",
    errno.EISDIR: "name a file in it",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EIO: "look at the disk",
    errno.EACCES: "choose a folder or file that you may use",
    errno.EPERM: "choose a folder or file that you may use",
}


def guarded(program: str, body: Callable[[], object]) -> int:
    """Run a command's work and return its exit code.

    Args:
        program: the command's name, which an error's line begins with.
        body: does the work; an integer that it returns is the exit code.

    Raises:
        Exception: any that `body` raises and that is a bug, with its traceback.
    """
    for stream in (sys.stdout, sys.stderr):
        # Names and texts may hold what the terminal's encoding, or UTF-8 itself, cannot: a file's
        # name is bytes. Tests and notebooks put streams in place that have no encoding.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        status = body()
    except EchoxError as error:
        return _failed(program, str(error), 2)
    except KeyboardInterrupt:
        # 128 and the number of SIGINT, as shells report it.
        return _failed(program, "interrupted", 130)
    except BrokenPipeError:  # `echox-info | head`
        # Python flushes stdout at exit, and would report the same error once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if (sentence := _machine_fault(error)) is None:
            raise
        return _failed(program, sentence, 2)
    return status if isinstance(status, int) else 0


def _failed(program: str, sentence: str, status: int) -> int:
    print(f"{program}: {sentence}", file=sys.stderr)
    return status


def _machine_fault(error: Exception) -> str | None:
    """Return the sentence for a fault of the machine or an installed library; None for a bug."""
    if isinstance(error, OSError) and error.errno in _WAYS_OUT:
        return f"{error.strerror}: {error.filename or 'while writing'}; {_WAYS_OUT[error.errno]}"
    if isinstance(error, UnicodeEncodeError) and "surrogates" in error.reason:
        text = error.object[max(0, error.start - 40) : error.end + 40]
        return f"a name or text holds bytes that are not UTF-8, {text!r}; rename or mend it"
    if is_out_of_memory(error):
        return out_of_memory_text(error, "use smaller batches, or end other programs")
    fault = library_fault(error)
    return None if fault is None else str(fault)
