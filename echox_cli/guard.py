"""Turns the end of a command into an exit code, and what went wrong into one line.

Exit codes: 0 done, 2 the user can mend it, 130 interrupted; a bug of ours keeps its traceback and exits with 1.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable

from echox.errors import EchoxError
from echox.packages import library_fault

# Faults of the machine rather than of the program: each is one sentence of the operating system.
_ENVIRONMENT = {
    errno.ENOSPC: "free some space or choose another folder",
    errno.EDQUOT: "free some space or choose another folder",
    errno.EROFS: "choose a folder that can be written",
    errno.ENOTDIR: "a file stands where a folder is needed, so move it or choose another folder",
    errno.EEXIST: "a file stands where a folder is needed, so move it or choose another folder",
    errno.EISDIR: "name a file in it",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EIO: "look at the disk",
    errno.EACCES: "choose a folder or file that you may use",
    errno.EPERM: "choose a folder or file that you may use",
}


def guarded(program: str, body: Callable[[], object]) -> int:
    """Run a door's work and turn its end into an exit code; an integer that `body` returns is taken as it is."""
    try:
        status = body()
    except EchoxError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `echox-info | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if (sentence := _of_the_machine(error)) is None:
            raise
        print(f"{program}: {sentence}", file=sys.stderr)
        return 2
    return status if isinstance(status, int) else 0


def _of_the_machine(error: Exception) -> str | None:
    """The sentence for a fault of the machine or of a library that is installed on it; None for a bug."""
    if isinstance(error, OSError) and error.errno in _ENVIRONMENT:
        return f"{error.strerror}: {error.filename or 'while writing'}; {_ENVIRONMENT[error.errno]}"
    fault = library_fault(error)
    return None if fault is None else str(fault)
