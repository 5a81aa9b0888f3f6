"""A step of every optimizer, lowered for TPUs and GPUs: what the module must hold, and must not.

Both at once, on a machine with neither. Compiling for them is tests/test_aot.py's.
"""

import re
from collections import Counter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES

import adaptax
from adaptax import lowbit
from adaptax.catalog import CATALOG

PLATFORMS = ("tpu", "cuda")
LOWBIT = [tx for name, tx in vars(lowbit).items() if name.endswith("bit")]
SUBJECTS = {case.name: case.make() for case in CASES if case.main}
SUBJECTS |= {make.__name__: make(1e-3) for make in LOWBIT}
SHAPES = ((64, 64), (8, 4), (6,))  # the first is large enough to be kept in few bits

ELSEWHERE = r"custom_call(?: @[\w.]+)?|stablehlo\.(?:infeed|outfeed|recv|send)\b"
ROUNDED = r"stablehlo\.(?:add|divide|exponential\w*|log\w*|multiply|power|r?sqrt|subtract) .*bf16"


class Module(NamedTuple):
    """A lowered step. It donates parameters and state, its first and second argument."""

    text: str
    donated: list[str]  # the paths of these arrays

    @property
    def main(self) -> str:
        """The line that declares the arguments, without that of the platform."""
        (line,) = re.findall(r"func\.func public @main\((.*)\) -> ", self.text)
        return re.sub(r"%arg0: tensor<i32> {jax.global_constant[^}]*}, ", "", line)

    @property
    def functions(self) -> dict[str, str]:
        """The other functions: body by name."""
        return dict(re.findall(r"func\.func private @([^(]+)(.*?)\n  }\n", self.text, re.DOTALL))

    @property
    def kinds(self) -> Counter[str]:
        """How many functions there are of each name."""
        return Counter(re.sub(r"_\d+$", "", name.strip('"')) for name in self.functions)


def lower(tx: Any, leaves_of_a_shape: int, dtype: Any, platforms: Any = PLATFORMS) -> Module:
    """A step on a tree with so many leaves of each shape."""
    shapes = enumerate(SHAPES * leaves_of_a_shape)
    params = {f"leaf_{i}": jax.ShapeDtypeStruct(shape, dtype) for i, shape in shapes}
    state = jax.eval_shape(tx.init, params)

    def step(params: Any, state: Any, grads: Any) -> Any:
        updates, state = tx.update(grads, state, params)
        return adaptax.apply_updates(params, updates), state

    traced = jax.jit(step, donate_argnums=(0, 1), keep_unused=True).trace(params, state, params)
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path((params, state))]
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path in paths]
    return Module(traced.lower(lowering_platforms=platforms).as_text(), names)


def problems(tx: Any, dtype: Any = np.float32, platforms: Any = PLATFORMS) -> list[str]:
    """Everything that is wrong with the module of a transformation's step."""
    module = lower(tx, 3, dtype, platforms)
    arguments = re.findall(r"%arg\d+: tensor<[^>]*>(?: {([^}]*)})?", module.main)
    found = []
    for i, (path, attributes) in enumerate(zip(module.donated, arguments, strict=False)):
        if f"tf.aliasing_output = {i} :" not in attributes:
            found.append(f"{path} is not written in place")
    if any("aliasing" in attributes for attributes in arguments[len(module.donated) :]):
        found.append("gradients are written over")
    # Three leaves of a shape need no more functions than one.
    more = module.kinds - lower(tx, 1, dtype, platforms).kinds
    found += [f"{kind} is there {count} times more" for kind, count in more.items()]
    found += ["float64"] * bool(re.search(r"\bf64|xf64", module.text))
    found += sorted(set(re.findall(ELSEWHERE, module.text)))
    rounded = re.findall(ROUNDED, "".join(module.functions.values()))
    return found + sorted(set(rounded))


def test_the_subjects_are_the_catalogue_and_the_aliases():
    assert {entry.name for entry in CATALOG} <= set(SUBJECTS)
    assert {"adam8bit", "adamw8bit", "adam4bit", "rmsprop8bit", "lion8bit"} <= set(SUBJECTS)


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("tx", SUBJECTS.values(), ids=SUBJECTS.keys())
def test_a_step_lowers_for_tpu_and_cuda(tx, dtype):
    assert problems(tx, dtype) == []


def test_few_bits_are_in_the_module():
    module = lower(lowbit.adam8bit(1e-3), 1, np.float32)
    assert "64x64xui8" in module.main and "64x64xi8" in module.main


# Each check finds what it is for.


def each(f: Any) -> adaptax.GradientTransformation:
    """The function for each leaf."""
    return adaptax.stateless(lambda updates, params: jax.tree.map(f, updates))


def called_back(g: Any) -> Any:
    return jax.pure_callback(lambda x: x, g, g)


def in_double(g: Any) -> Any:
    with jax.enable_x64(True):
        wide = jax.lax.convert_element_type(g, jnp.float64)
        return jax.lax.convert_element_type(wide * wide, g.dtype)


def orthogonal(g: Any) -> Any:
    return jnp.linalg.qr(g)[0] if g.shape == SHAPES[0] else g


BAD: dict[str, tuple[Any, Any, str]] = {
    "float64": (in_double, np.float32, "float64"),
    "custom call": (orthogonal, np.float32, "custom_call"),
    "a function for each leaf": (
        lambda g: jax.jit(lambda x: x + x)(g),
        np.float32,
        "is there 6 times more",
    ),
    "arithmetic in 16 bits": (jax.jit(lambda g: g * g), jnp.bfloat16, "stablehlo.multiply"),
}


@pytest.mark.parametrize("f, dtype, problem", BAD.values(), ids=BAD.keys())
def test_a_bad_transformation_is_found_out(f, dtype, problem):
    found = problems(each(f), dtype)
    assert found and all(problem in line for line in found), found


def test_a_host_callback_is_found_out():
    with pytest.raises(NotImplementedError, match="multi-platform lowering for python_callback"):
        problems(each(called_back))
    (line,) = problems(each(called_back), platforms=("cpu",))
    assert "callback" in line


@pytest.mark.filterwarnings("ignore:Some donated buffers were not usable")
def test_a_state_that_changes_its_dtype_is_found_out():
    def update(updates: Any, state: Any, params: Any = None) -> Any:
        return updates, state.astype(jnp.bfloat16)

    tx = adaptax.GradientTransformation(lambda params: jnp.zeros(3), update)
    assert problems(tx) == ["1 is not written in place"]
