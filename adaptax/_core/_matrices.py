"""Work on whole matrices, and its sharing out among the devices of a mesh axis.

A rule sees one array, and calls `on_stack` for what it does to matrices. Where devices would
repeat that work, `shared_out` runs the rules of all leaves up to there, has all matrices of a
size worked on together, and runs the rules on with the results.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeAlias

import jax
from jax.sharding import NamedSharding, PartitionSpec

Together: TypeAlias = Callable[[Callable[[Any], Any], list[Any]], list[Any]]
"""Of a function of a stack of matrices, and several stacks: its results for each."""

_together: ContextVar[Together | None] = ContextVar("together", default=None)
_answer: ContextVar[Callable[..., Any] | None] = ContextVar("answer", default=None)


def on_stack(f: Callable[[Any], Any], x: Any) -> Any:
    """f(x), for f that takes a stack of matrices, (n, rows, columns), each by itself."""
    answer = _answer.get()
    return _whole(f, x) if answer is None else answer(f, x)


def _whole(f: Callable[[Any], Any], x: Any) -> Any:
    """f(x); where shardings are types, of whole matrices, and sharded as x again."""
    sharding = jax.typeof(x).sharding
    if all(entry is None for entry in sharding.spec[1:]):
        return f(x)
    whole = NamedSharding(sharding.mesh, PartitionSpec(sharding.spec[0], None, None))
    return jax.sharding.reshard(f(jax.sharding.reshard(x, whole)), sharding)


@contextmanager
def sharing(together: Together) -> Iterator[None]:
    """Share out work on matrices, in what is traced inside; `together` does that of many stacks."""
    token = _together.set(together)
    try:
        yield
    finally:
        _together.reset(token)


def current_sharing() -> Together | None:
    """What does the work of many stacks here; None where each leaf does its own."""
    return _together.get()


class Task(NamedTuple):
    """A leaf's rule with its arguments; leaves of one kind may lie in one stack."""

    kind: Any
    rule: Callable[..., Any]
    arguments: Sequence[Any]


class _Wanted(Exception):
    """A rule's call of `on_stack` whose result is not known yet."""

    def __init__(self, f: Callable[[Any], Any], x: Any):
        self.f = f
        self.x = x


def shared_out(tasks: Sequence[Task], together: Together) -> list[Any]:
    """The results of all tasks; their matrices go through common stacks.

    A rule is pure, so it is begun anew with each answer; what is computed twice the compiler
    finds.
    """
    known: list[list[Any]] = [[] for _ in tasks]
    done: dict[int, Any] = {}
    while len(done) < len(tasks):
        stacks: dict[Any, list[tuple[int, _Wanted]]] = {}
        for i, task in enumerate(tasks):
            if i in done:
                continue
            try:
                done[i] = _run(task, known[i])
            except _Wanted as wanted:
                key = (task.kind, wanted.x.shape[1:], wanted.x.dtype)
                stacks.setdefault(key, []).append((i, wanted))
        for members in stacks.values():
            results = together(members[0][1].f, [wanted.x for _, wanted in members])
            for (i, _), result in zip(members, results, strict=True):
                known[i].append(result)
    return [done[i] for i in range(len(tasks))]


def _run(task: Task, known: Sequence[Any]) -> Any:
    answers = iter(known)

    def answer(f: Callable[[Any], Any], x: Any) -> Any:
        for result in answers:
            return result
        raise _Wanted(f, x)

    token = _answer.set(answer)
    try:
        return task.rule(*task.arguments)
    finally:
        _answer.reset(token)
