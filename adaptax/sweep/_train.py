"""Training pieces: as many lanes at once as fit, from one step to another."""

import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from . import _errors, _program
from ._host import Layout, finite, take
from ._program import LANES, WHOLE, Lane, Plan
from ._store import Store

PACE = 0.3
"""Seconds between two looks at the losses, about."""
CACHE = 1 << 20
"""Bytes of parameters and states that a processor's core keeps near, about."""


@dataclass(frozen=True)
class Task:
    """What is to be trained together.

    Attributes:
        name: The name of the piece in the store.
        ids: Which lanes.
        before: Their leaves at the first step; None where they start.
        first: The step from which they go.
        last: The step to which they go.
        width: The width of the program, at least as many.
    """

    name: str
    ids: np.ndarray
    before: list[np.ndarray] | None
    first: int
    last: int
    width: int

    @property
    def part(self) -> dict[str, np.ndarray]:
        """Which part of the sweep it is, for the store."""
        return {"lanes": self.ids, "span": np.array([self.first, self.last])}


@dataclass(frozen=True)
class Piece:
    """Some lanes after some steps, on the host.

    Attributes:
        step: The step that they have reached.
        lanes: The leaves of a `Lane`, stacked.
        losses: (steps of this piece, lanes), NaN where a lane had ended.
        score: What `evaluate` says, (lanes,); NaN before the piece is done, or without it.
    """

    step: int
    lanes: list[np.ndarray]
    losses: np.ndarray
    score: np.ndarray


class Trainer:
    """Trains lanes of one plan in pieces.

    A processor works on as many pieces at a time as it has cores, each in a thread of its own:
    the small operations of a small network keep one core busy. The threads only run what is
    compiled; all else is done in the caller's thread, which knows the settings of jax.

    Args:
        plan: What is trained.
        numbers: The numbers of every lane.
        which: For every lane, which of the starts it takes, int32.
        starts: Parameters, one for each seed, stacked.
        batches: Stacked batches, or None.
        store: Where pieces are kept.
        save_every: Seconds between two writes of a piece that is under way.
        tick: Called with the number of steps done, summed over the lanes.
    """

    def __init__(
        self,
        plan: Plan,
        numbers: Any,
        which: np.ndarray,
        starts: Any,
        batches: Any,
        store: Store,
        save_every: float,
        tick: Callable[[int], None],
    ):
        self.plan, self._store = plan, store
        self._numbers, self._which = numbers, which
        self._starts = plan.place(starts, WHOLE)
        self._batches = plan.place(batches, WHOLE)
        self._save_every, self._tick, self._lock = save_every, tick, threading.Lock()
        self._programs: dict[int, Any] = {}
        self._workers = cores() if plan.mesh.size == 1 and _on_processor(plan) else 1
        self.layout = Layout(self._start, *self._operands(np.array([0]), self.width(1)))

    def width(self, lanes: int) -> int:
        """The width of a program for so many lanes: a multiple of the number of devices."""
        devices = self.plan.mesh.size
        return math.ceil(lanes / devices) * devices

    def size(self, lanes: int, batch_size: int | None, max_bytes: int | None) -> int:
        """How many of so many lanes to train at once.

        The first guess counts parameters, state, gradients and updates; the compiled program of
        that size says what it really takes, and the guess is scaled until it fits.
        """
        if batch_size is not None:
            return min(batch_size, lanes)
        devices = self.plan.mesh.size
        limit = (memory(self.plan) if max_bytes is None else max_bytes) / self._workers
        fixed = sum(x.nbytes for x in jax.tree.leaves(self._batches))
        one = self.layout.bytes // self.width(1)
        size = devices * max(1, int((limit - fixed) // (3 * one)))
        if self._workers > 1:
            size = min(size, max(1, CACHE // one), math.ceil(lanes / self._workers))
        size = _even(lanes, size)
        while (needed := self._needed(size)) > limit and size > devices:
            fits = size * (limit - fixed) / max(needed - fixed, 1)
            size = _even(lanes, max(devices, min(int(fits), size - 1) // devices * devices))
        if needed > limit and max_bytes is not None:
            raise _errors.too_small("sweep.run", needed * self._workers, max_bytes)
        return size

    def train(self, tasks: Sequence[Task]) -> Iterator[Piece]:
        """The pieces, in order; what the store has of them is not done again."""
        under_way: deque[tuple[Task, Future[Any]]] = deque()
        with self._threads() as submit:
            for task in tasks:
                if len(under_way) == self._workers:
                    yield self._finished(*under_way.popleft())
                under_way.append((task, submit(task)))
            while under_way:
                yield self._finished(*under_way.popleft())

    @contextmanager
    def _threads(self) -> Iterator[Callable[[Task], "Future[Any]"]]:
        """A function that begins a task; on leaving, what is under way stops at its next look."""
        stop = threading.Event()
        with ThreadPoolExecutor(self._workers) as pool:

            def submit(task: Task) -> "Future[Any]":
                saved = self._loaded(task)
                if saved is not None and saved.step == task.last:
                    self._count(task.last - task.first, task)
                    done: Future[Any] = Future()
                    done.set_result(saved)
                    return done
                operands = self._operands(task.ids, task.width)
                lanes = self._lanes(task.before if saved is None else saved.lanes, operands)
                program = self.program(task.width)
                return pool.submit(self._run, program, task, operands[0], lanes, saved, stop)

            try:
                yield submit
            finally:
                stop.set()

    def _run(
        self,
        program: Any,
        task: Task,
        numbers: Any,
        lanes: Lane,
        saved: Piece | None,
        stop: threading.Event,
    ) -> tuple[Lane, list[np.ndarray], list[np.ndarray] | None]:
        """Run a compiled program until the last step, or until all lanes have ended.

        Returns the lanes, their losses, and the lanes before the last step: no loss comes after
        it that would show what it did.
        """
        step = task.first if saved is None else saved.step
        blocks = [] if saved is None else [saved.losses]
        self._count(step - task.first, task)
        alive, pace, written = np.asarray(lanes.alive), 16, time.monotonic()
        before = None
        while step < task.last and alive.any() and not stop.is_set():
            if step == task.last - 1:
                before = [np.array(x) for x in self.layout.to_host(lanes)]
            began, count = time.monotonic(), min(pace, max(task.last - step - 1, 1))
            lanes, block = program(numbers, lanes, self._batches, np.int32(step), np.int32(count))
            alive = np.asarray(lanes.alive)
            blocks.append(np.asarray(block)[:count, : len(task.ids)])
            step += count
            self._count(count, task)
            now = time.monotonic()
            pace = _next_pace(pace, now - began)
            if self._store.keeps and step < task.last and now - written >= self._save_every:
                self._save(task, self._piece(task, step, lanes, blocks))
                written = now
        if step < task.last:
            rest = (task.last - step, len(task.ids))
            blocks.append(np.full(rest, np.nan, np.result_type(*blocks) if blocks else np.float32))
            self._count(task.last - step, task)
        return lanes, blocks, before

    def _finished(self, task: Task, future: "Future[Any]") -> Piece:
        """A piece at its last step, scored and kept."""
        result = future.result()
        if isinstance(result, Piece):
            return result
        lanes, blocks, before = result
        if before is not None:
            lanes = self._checked(lanes, before)
        score = None if self.plan.evaluate is None else _program.score(self.plan, lanes.params)
        piece = self._piece(task, task.last, lanes, blocks, score)
        self._save(task, piece)
        return piece

    def _checked(self, lanes: Lane, before: list[np.ndarray]) -> Lane:
        """Lanes with parameters that are not finite end before the last step."""
        now = self.layout.to_host(lanes)
        host = self.layout.from_host(now)
        good = finite(jax.tree.leaves(host.params), len(host.alive)) | ~host.alive
        if good.all():
            return lanes
        kept = [
            np.where(good.reshape(-1, *(1,) * (x.ndim - 1)), x, old)
            for x, old in zip(now, before, strict=True)
        ]
        ended = self.layout.from_host(kept)._replace(alive=host.alive & good)
        return self.plan.place(ended, LANES)

    def program(self, width: int) -> Any:
        """The compiled `advance` of so many lanes. jax keeps it, also for the next sweep."""
        if width not in self._programs:
            self._programs[width] = self._compiled(width)
        return self._programs[width]

    def _compiled(self, width: int) -> Any:
        numbers, which = self._operands(np.array([0]), width)
        sharding = NamedSharding(self.plan.mesh, LANES)
        lanes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            jax.eval_shape(self._start, numbers, which),
        )
        step = np.int32(0)
        lowered = _program.advance.lower(self.plan, numbers, lanes, self._batches, step, step)
        return lowered.compile()

    def _needed(self, lanes: int) -> int:
        """Bytes on each device that the compiled program of so many lanes takes."""
        used = self.program(self.width(lanes)).memory_analysis()
        if used is None:
            return 0
        total = used.argument_size_in_bytes + used.temp_size_in_bytes
        return total + used.output_size_in_bytes - used.alias_size_in_bytes

    def _start(self, numbers: Any, which: Any) -> Lane:
        return _program.start(self.plan, numbers, which, self._starts)

    def _operands(self, ids: np.ndarray, width: int) -> Any:
        """Numbers and starts of some lanes, the last repeated up to a program's width."""
        rows = ids[np.minimum(np.arange(width), len(ids) - 1)]
        numbers = jax.tree.map(lambda x: x[rows], self._numbers)
        return self.plan.place((numbers, self._which[rows]), LANES)

    def _lanes(self, before: list[np.ndarray] | None, operands: Any) -> Lane:
        if before is None:
            return self._start(*operands)
        rows = np.minimum(np.arange(len(operands[1])), len(before[0]) - 1)
        return self.plan.place(self.layout.from_host(take(before, rows)), LANES)

    def _piece(
        self, task: Task, step: int, lanes: Lane, blocks: list[Any], score: Any = None
    ) -> Piece:
        count = len(task.ids)
        nothing = np.full(count, np.nan)
        return Piece(
            step,
            take(self.layout.to_host(lanes), np.arange(count)),
            np.concatenate(blocks),
            nothing if score is None else np.asarray(score, np.float64)[:count],
        )

    def _count(self, steps: int, task: Task) -> None:
        with self._lock:
            self._tick(steps * len(task.ids))

    def _save(self, task: Task, piece: Piece) -> None:
        if self._store.keeps:
            leaves = self.layout.packed(piece.lanes)
            named = {"step": piece.step, "losses": piece.losses, "score": piece.score}
            self._store.save(task.name, {**task.part, **named, **leaves})

    def _loaded(self, task: Task) -> Piece | None:
        saved = self._store.load(task.name, task.part)
        if saved is None:
            return None
        lanes = self.layout.unpacked(saved, len(task.ids))
        return Piece(int(saved["step"]), lanes, saved["losses"], saved["score"])


def _even(lanes: int, size: int) -> int:
    """The size of the largest of pieces that are nearly equal, and not more than needed."""
    return math.ceil(lanes / math.ceil(lanes / size))


def memory(plan: Plan) -> float:
    """Bytes that each device can be asked for: most of what is free."""
    stats = plan.mesh.devices.flat[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return 0.9 * (stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    try:  # the processors' memory, shared by all of them
        return 0.5 * os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / plan.mesh.size
    except (ValueError, OSError, AttributeError):
        return math.inf


def cores() -> int:
    """How many cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def _on_processor(plan: Plan) -> bool:
    return plan.mesh.devices.flat[0].platform == "cpu"


def _next_pace(steps: int, seconds: float) -> int:
    """How many steps to take until the next look, given how long these took."""
    wanted = steps * PACE / max(seconds, 1e-6)
    return max(1, min(int(wanted), 4 * steps, _program.CAPACITY))
