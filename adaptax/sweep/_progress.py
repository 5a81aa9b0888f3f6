"""A progress bar on stderr, drawn where rich is installed and stderr is a terminal."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any


class Silent:
    """A bar that is not drawn."""

    def advance(self, steps: int) -> None:
        """So many steps more are done."""

    def describe(self, text: str, left: int) -> None:
        """What is being done, and how many steps there are still to do."""


class _Bar(Silent):
    def __init__(self, progress: Any):
        self._progress = progress
        self._task = progress.add_task("", total=None)
        self._done = 0

    def advance(self, steps: int) -> None:
        self._done += steps
        self._progress.update(self._task, completed=self._done, refresh=True)

    def describe(self, text: str, left: int) -> None:
        self._progress.update(
            self._task, description=text, total=self._done + left, completed=self._done
        )


@contextmanager
def bar(shown: bool) -> Iterator[Silent]:
    """A bar that counts steps; a silent one without rich or a terminal."""
    if not (shown and sys.stderr.isatty() and find_spec("rich")):
        yield Silent()
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), auto_refresh=False) as progress:
        yield _Bar(progress)
