"""What processes tell each other; a process alone tells itself."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np


def alone() -> bool:
    """Whether there is one process."""
    return jax.process_count() == 1


def is_0() -> bool:
    """Whether this is the process that writes what is common to all."""
    return jax.process_index() == 0


def of_process_0(number: int) -> int:
    """What process 0 gives."""
    return all_of_process_0([number], 1)[0]


def all_of_process_0(numbers: Sequence[int], count: int | None = None) -> list[int]:
    """The numbers that process 0 gives, however many."""
    if alone():
        return list(numbers)
    from jax.experimental import multihost_utils

    count = of_process_0(len(numbers)) if count is None else count
    # As text: jax may have no 64-bit integers.
    text = "".join(f"{n:20d}" for n in numbers) if is_0() else " " * 20 * count
    sent = np.frombuffer(text.encode(), np.uint8)
    text = bytes(np.asarray(multihost_utils.broadcast_one_to_all(sent))).decode()
    return [int(text[20 * i : 20 * (i + 1)]) for i in range(count)]


def meet() -> None:
    """Wait for all processes."""
    of_process_0(0)


def gathered(number: int) -> list[int]:
    """What each process gives: a number that 32 bits hold."""
    if alone():
        return [number]
    from jax.experimental import multihost_utils

    return np.ravel(multihost_utils.process_allgather(np.int32(number))).tolist()


def shared_out(things: Sequence[Any]) -> Sequence[Any]:
    """The part of the work that is this process'."""
    return things[jax.process_index() :: jax.process_count()]
