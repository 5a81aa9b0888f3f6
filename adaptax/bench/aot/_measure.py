"""Compile a training step for a target and say what it moves."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ..._core import apply_updates
from ._program import Program, read
from ._targets import Target, devices


@dataclass(frozen=True)
class Report:
    """A compiled step.

    All sizes are bytes, and per device where there are several. "Per parameter" means the whole
    tree's parameters.

    Attributes:
        target: What it was compiled for.
        parameters: The number of parameters.
        leaves: The number of arrays that hold them.
        state: The size of the optimizer's state.
        floor: The least that a step can move, from `floor`; 0 if most of it is not the optimizer's.
        program: What the compiled program does.
        arguments: The arguments' memory.
        outputs: The results' memory, with what they share with arguments.
        aliased: The part of the arguments that results take over.
        temporaries: The memory that is used in between.
        lower_seconds: The time that tracing and lowering took.
        compile_seconds: The time that the compiler took.
        text: The compiled program.
    """

    target: str
    parameters: int
    leaves: int
    state: int
    floor: int
    program: Program
    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    lower_seconds: float
    compile_seconds: float
    text: str = field(repr=False)

    @property
    def state_per_parameter(self) -> float:
        """The state over the number of parameters."""
        return self.state / self.parameters

    @property
    def floor_per_parameter(self) -> float:
        """The floor over the number of parameters."""
        return self.floor / self.parameters

    @property
    def bytes_per_parameter(self) -> float:
        """Bytes read and written over the number of parameters."""
        return self.program.bytes / self.parameters

    @property
    def padded_per_parameter(self) -> float:
        """The same with the padding of the memory layout."""
        return self.program.padded / self.parameters

    @property
    def occasional_per_parameter(self) -> float:
        """What the dearest branches of conditionals move, over the number of parameters."""
        return self.program.occasional / self.parameters

    @property
    def ratio(self) -> float:
        """Bytes read and written over the floor."""
        return self.program.bytes / self.floor if self.floor else math.inf

    @property
    def exchanged_per_parameter(self) -> dict[str, float]:
        """What collectives gather or sum, by kind, over the number of parameters."""
        return {kind: n / self.parameters for kind, n in self.program.exchanged.items()}

    @property
    def fusions_per_leaf(self) -> float:
        """Fusions on arrays over the number of leaves."""
        return self.program.fusions / self.leaves


def floor(params: Any, state: Any, grads: Any) -> int:
    """The least number of bytes that a step can move: read p, g, state; write p, state.

    Args:
        params: The parameters' avals; with a sharding, one device's part counts.
        state: The optimizer state's.
        grads: The gradients'.
    """
    return 2 * (size(params) + size(state)) + size(grads)


def size(tree: Any) -> int:
    """The bytes of arrays; of those with a sharding, one device's part."""
    return sum(map(_bytes, jax.tree.leaves(tree)))


def _bytes(x: Any) -> int:
    sharding = getattr(x, "sharding", None)
    shape = x.shape if sharding is None else sharding.shard_shape(x.shape)
    if jnp.issubdtype(x.dtype, jax.dtypes.extended):  # keys
        bits = 8 * x.dtype.itemsize
    else:
        bits = jax.dtypes.itemsize_bits(x.dtype)
    return -(-math.prod(shape) * bits // 8)


def measure(
    step: Callable[[Any, Any, Any], tuple[Any, Any]],
    params: Any,
    state: Any,
    grads: Any,
    target: str,
    *,
    donate: bool = True,
    compiler_options: Mapping[str, Any] | None = None,
) -> Report:
    """Compile `step(params, state, grads) -> (params, state)` for a target; run nothing.

    Args:
        step: The step, not jitted.
        params: Arrays or `jax.ShapeDtypeStruct`s; one with a sharding on the target's devices keeps
            it, everything else goes whole to each of them.
        state: The same, of the optimizer.
        grads: The same, of the gradients.
        target: The name of a target; see `Target.named`.
        donate: Whether params and state are donated.
        compiler_options: Options of XLA for this compilation.

    Raises:
        ValueError: There is no such target, or no parameter.
        ModuleNotFoundError: The target's compiler is not installed.
    """
    mesh = Mesh(np.array(devices(target)), ("device",), axis_types=(AxisType.Auto,))
    whole = NamedSharding(mesh, PartitionSpec())
    avals = tuple(_placed(tree, whole) for tree in (params, state, grads))
    parameters = sum(math.prod(x.shape) for x in jax.tree.leaves(avals[0]))
    if not parameters:
        raise ValueError("measure: params must hold at least one parameter, got none.")
    jitted = jax.jit(step, donate_argnums=(0, 1) if donate else ())
    start = time.perf_counter()
    lowered = jitted.lower(*avals)
    middle = time.perf_counter()
    options = None if compiler_options is None else dict(compiler_options)
    compiled = lowered.compile(compiler_options=options)
    end = time.perf_counter()
    text = compiled.as_text() or ""
    memory = compiled.memory_analysis()
    assert memory is not None  # none of these compilers leaves it out
    return Report(
        target=target,
        parameters=parameters,
        leaves=len(jax.tree.leaves(avals[0])),
        state=size(avals[1]),
        floor=floor(*avals),
        program=read(text, Target.named(target).main),
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        lower_seconds=middle - start,
        compile_seconds=end - middle,
        text=text,
    )


def _placed(tree: Any, whole: NamedSharding) -> Any:
    def one(x: Any) -> jax.ShapeDtypeStruct:
        if not hasattr(x, "dtype"):
            x = jnp.asarray(x)
        kept = x.sharding if isinstance(x, jax.ShapeDtypeStruct) else None
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=kept or whole)

    return jax.tree.map(one, tree)


def measure_optimizer(
    tx: Any,
    tree: Any,
    target: str,
    *,
    param_dtype: Any = jnp.float32,
    grad_dtype: Any = None,
    donate: bool = True,
) -> Report:
    """Compile a transformation's step for a target: the update and its application.

    Args:
        tx: The transformation.
        tree: The parameters, of which only the shapes count.
        target: The name of a target; see `Target.named`.
        param_dtype: The parameters' dtype.
        grad_dtype: The gradients' dtype; None for the parameters'.
        donate: Whether params and state are donated.

    Raises:
        ValueError: There is no such target, or no parameter.
        ModuleNotFoundError: The target's compiler is not installed.
    """

    def step(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        updates, state = tx.update(grads, state, params)
        return apply_updates(params, updates), state

    params = _cast(tree, param_dtype)
    grads = _cast(tree, param_dtype if grad_dtype is None else grad_dtype)
    state = jax.eval_shape(tx.init, params)
    return measure(step, params, state, grads, target, donate=donate)


def _cast(tree: Any, dtype: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), dtype), tree)
