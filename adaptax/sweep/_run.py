"""The run of a sweep: rungs, pieces, scores."""

import math
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from .._core import _checks, _tree, set_numbers
from .._core._value import TransformationKind
from . import _errors, _program, _progress
from ._halving import NONE, Halving
from ._program import AXIS, Plan
from ._race import Race
from ._results import Results
from ._settings import Grid, whole
from ._store import Store, claimed, digest
from ._train import Trainer

WHERE = "sweep.run"


def run(
    tx: Any,
    settings: Any,
    loss_fn: Any,
    params: Any,
    batches: Any,
    *,
    steps: int,
    evaluate: Any = None,
    seeds: int | Sequence[int] = 1,
    halving: Halving | None = None,
    bound: float = math.inf,
    batch_size: int | None = None,
    max_bytes: int | None = None,
    devices: Sequence[Any] | None = None,
    directory: Any = None,
    save_every: float = 30.0,
    progress: bool = True,
) -> Results:
    """Train once with each setting, all settings at once.

    One compiled program maps a training step over settings and seeds, and is used again for each
    piece where they are trained in several. All see the same batches. A setting's parameters and
    losses are those of training it alone, up to rounding.

    A setting whose loss is not finite, or larger than `bound`, ends there and keeps the
    parameters that it had: it has diverged. So has one whose parameters are not finite after its
    last step.

    Args:
        tx: The transformation whose numbers are swept.
        settings: For each number, by name, its values: what `grid` or `draw` returns, or a
            mapping of your own. A name is that of an argument, such as "learning_rate"; before it
            stands what leads to it, as in "learning_rate/peak_value" for a schedule,
            "1/learning_rate" in a chain, "decay/learning_rate" in a named part. A trailing part is
            enough where only one number has it; a glob sets all that match.
        loss_fn: `loss_fn(params, batch) -> scalar`, real.
        params: A tree of arrays, from which all start; or `params(key) -> tree`, called with
            `jax.random.key(seed)`.
        batches: A tree of arrays with a leading axis of batches, taken in turn, again and again;
            or a pure function `batches(step) -> batch` of the traced step, from 0.
        steps: How many steps, >= 1.
        evaluate: `evaluate(params) -> scalar`, lower is better; None: the mean of the losses of the
            last tenth of the steps.
        seeds: How many seeds (0, 1, ...), or which, each in [0, 2^31). A setting's score is the
            mean over them.
        halving: When to stop the worst settings, from `halving`; None: never.
        bound: The largest loss of a setting that has not diverged.
        batch_size: The most runs (one for each setting and seed) in one call of the program;
            None: as many as fit into memory and, on a processor, as many as keep its cores busy
            and fit into their caches; each core has a call of its own.
        max_bytes: Memory on each device for a compiled program; None: nine tenths of what an
            accelerator has free, half of what the processor has.
        devices: Devices to split the runs over; None: all of this process.
        directory: Where to keep finished pieces; the same call made again goes on from them. A
            piece that is damaged, or of another sweep, is trained again with a warning that
            names the file.
        save_every: Seconds between two writes of a piece that is not finished yet.
        progress: Show a progress bar where rich is installed and stderr is a terminal.

    Returns:
        The results. A figure, a table and the best transformation can be taken from them.

    Raises:
        ValueError: There are no settings, a name is unknown, a number lies outside its range,
            lengths differ, or the directory holds another sweep, or one that an older version
            of adaptax wrote.
        TypeError: An argument is of another kind, or the loss is not a real scalar.
        RuntimeError: Another sweep is running in the directory (known where the file system
            has locks).
    """
    began = time.monotonic()
    tx = TransformationKind().canonical(WHERE, "tx", tx)
    chosen = Grid(WHERE, tx, settings)
    steps = whole(WHERE, "steps", steps, 1)
    seeded = _seeds(seeds)
    _check_limits(batch_size, max_bytes, bound, save_every)
    _check_kinds(halving, loss_fn, evaluate)
    starts = _starts(params, seeded)
    make_batch, stacked = _function_or_tree("batches", batches)
    if make_batch is None:
        _check_batches(stacked)
    mesh = Mesh(np.array(jax.local_devices() if devices is None else list(devices)), (AXIS,))
    plan = Plan(tx, chosen.names, loss_fn, evaluate, make_batch, float(bound), mesh)
    one = _One(plan, chosen.numbers, starts, stacked)
    _check_scalars(plan, one)
    halving = halving or NONE

    def request() -> dict[str, str]:
        return {
            "steps": str(steps),
            "seeds": str(seeded.tolist()),
            "halving": str(halving),
            "bound": str(plan.bound),
            "settings": digest(*(x for item in chosen.columns.items() for x in item)),
            "tx": digest(repr(set_numbers(tx, next(chosen.each())))),
            **one.digests(),
            "jax version": jax.__version__,
        }

    with claimed(WHERE, directory), _progress.bar(progress) as bar:
        store = Store(WHERE, directory, request)
        numbers = jax.tree.map(lambda x: np.repeat(x, len(seeded)), chosen.numbers)
        which = np.tile(np.arange(len(seeded), dtype=np.int32), len(chosen))
        trainer = Trainer(plan, numbers, which, starts, stacked, store, save_every, bar.advance)
        race = Race(trainer, len(chosen), len(seeded), steps, halving)
        race.run(store.size(lambda: trainer.size(race.lanes, batch_size, max_bytes)), bar)
    return race.results(chosen.columns, tx, time.monotonic() - began)


def _function_or_tree(name: str, value: Any) -> tuple[Any, Any]:
    """A function and None, or None and a tree of arrays; a callable module is a tree."""
    if _tree.is_function(value):
        return value, None
    leaves, structure = [], None
    if not isinstance(value, Iterator):
        leaves, structure = jax.tree_util.tree_flatten_with_path(value)
    if structure is None or not leaves:
        raise _checks.wrong_kind(WHERE, name, "a function, or a tree of arrays", value)
    arrays = []
    for path, leaf in leaves:
        if not isinstance(leaf, jax.Array | np.ndarray | np.generic | int | float | complex):
            raise _errors.not_an_array(WHERE, name, jax.tree_util.keystr(path), leaf)
        arrays.append(leaf if isinstance(leaf, jax.Array) else jnp.array(np.asarray(leaf)))
    return None, structure.unflatten(arrays)


def _starts(params: Any, seeds: np.ndarray) -> Any:
    """Parameters to start from, one for each seed, stacked."""
    make, tree = _function_or_tree("params", params)
    if make is None:
        if len(seeds) > 1:
            raise _errors.same_runs(WHERE, len(seeds))
        trees = [tree]
    else:
        trees = [_function_or_tree("params", make(jax.random.key(int(s))))[1] for s in seeds]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _check_batches(stacked: Any) -> None:
    leaves = jax.tree_util.tree_leaves_with_path(stacked)
    shapes = {jax.tree_util.keystr(path) or "the root": x.shape for path, x in leaves}
    if len({shape[:1] for shape in shapes.values()} - {(), (0,)}) != 1 or any(
        shape[:1] in ((), (0,)) for shape in shapes.values()
    ):
        raise _errors.leading_axes(WHERE, shapes)


def _check_kinds(halving: Any, loss_fn: Any, evaluate: Any) -> None:
    if halving is not None and not isinstance(halving, Halving):
        raise _checks.wrong_kind(WHERE, "halving", "what halving(...) returns", halving)
    for name, function in (("loss_fn", loss_fn), ("evaluate", evaluate)):
        if not callable(function) and not (name == "evaluate" and function is None):
            raise _checks.wrong_kind(WHERE, name, "a function", function)


def _check_limits(batch_size: Any, max_bytes: Any, bound: Any, save_every: Any) -> None:
    for name, value in (("batch_size", batch_size), ("max_bytes", max_bytes)):
        if value is not None:
            whole(WHERE, name, value, 1)
    for name, value in (("bound", bound), ("save_every", save_every)):
        if isinstance(value, bool) or not isinstance(value, int | float | np.number):
            raise _checks.wrong_kind(WHERE, name, "a number", value)
    if math.isnan(bound):
        raise _checks.out_of_range(WHERE, "bound", "(-inf, inf]", bound)
    if not save_every >= 0:
        raise _checks.out_of_range(WHERE, "save_every", "[0, inf)", save_every)


def _check_scalars(plan: Plan, one: "_One") -> None:
    """The loss and the score are real scalars."""
    functions: dict[str, tuple[Any, Any]] = {
        "loss_fn": (plan.loss_fn, (one.lane.params, one.batch))
    }
    if plan.evaluate is not None:
        functions["evaluate"] = (plan.evaluate, (one.lane.params,))
    for name, (function, args) in functions.items():
        out = jax.eval_shape(function, *args)
        if not isinstance(out, jax.ShapeDtypeStruct):
            raise _errors.not_a_scalar(WHERE, name, f"a {type(out).__name__}")
        if out.shape or not jnp.issubdtype(out.dtype, jnp.floating):
            raise _errors.not_a_scalar(WHERE, name, f"{out.dtype.name}{list(out.shape)}")


def _seeds(seeds: Any) -> np.ndarray:
    if isinstance(seeds, int | np.integer) and not isinstance(seeds, bool):
        return np.arange(whole(WHERE, "seeds", seeds, 1))
    if not isinstance(seeds, list | tuple | range | np.ndarray) or len(seeds) == 0:
        raise _checks.wrong_kind(WHERE, "seeds", "an integer, or a sequence of seeds", seeds)
    every = [whole(WHERE, f"seeds[{i}]", seed, 0) for i, seed in enumerate(seeds)]
    if max(every) >= 2**31 or len(set(every)) < len(every):
        raise _checks.out_of_range(WHERE, "seeds", "[0, 2147483648), each once", seeds)
    return np.array(every)


class _One:
    """The shapes of one lane and of one batch, and what makes them."""

    def __init__(self, plan: Plan, numbers: Any, starts: Any, stacked: Any):
        self._plan, self._starts, self._stacked = plan, starts, stacked
        self._numbers = jax.tree.map(lambda x: x[0], numbers)
        start = partial(_program.start_one, plan)
        self.lane = jax.eval_shape(start, self._numbers, np.int32(0), starts)
        self.batch = jax.eval_shape(partial(_program.batch_at, plan), stacked, np.int32(0))

    def digests(self) -> dict[str, str]:
        """What is trained, each part as a hash."""

        def traced(function: Any, *args: Any) -> str:
            return digest(jax.make_jaxpr(function)(*args))

        plan, params, step = self._plan, self.lane.params, np.int32(0)
        batches = traced(partial(_program.batch_at, plan), self._stacked, step)
        taken = partial(_program.step_one, plan)
        return {
            "params": digest(*jax.tree.leaves(self._starts)),
            "batches": batches + digest(*jax.tree.leaves(self._stacked)),
            "loss_fn": traced(plan.loss_fn, params, self.batch),
            "evaluate": "" if plan.evaluate is None else traced(plan.evaluate, params),
            "training step": traced(taken, self._numbers, self.lane, self.batch),
        }
