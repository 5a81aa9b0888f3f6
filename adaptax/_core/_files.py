"""Locks of files, for processes that write to one place."""

from typing import Any


def lock(file: Any, wait: bool) -> bool | None:
    """Lock an open file against other processes, and against other openings of it in this one.

    The lock ends with `unlock`, when the file is closed, and with the process.

    Args:
        file: A file that is open for writing.
        wait: Whether to wait for a lock that is taken.

    Returns:
        Whether it is locked; None where there are no locks (Windows, some network drives).
    """
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except (BlockingIOError, PermissionError):
        return False
    except (ImportError, OSError):
        return None
    return True


def unlock(file: Any) -> None:
    """Release the lock of a file, if there is one."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_UN)
    except (ImportError, OSError):
        return
