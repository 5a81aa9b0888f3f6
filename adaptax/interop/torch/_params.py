"""Parameters, from torch and back."""

import copy
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..._core import TreeMismatchError, _checks, _tree
from ._names import Names, rows_of
from ._tensors import as_numpy, as_tensor, placed


def load_params(params: Any, state_dict: Mapping[str, Any], names: Names) -> Any:
    """The parameters of a model of torch.

    Args:
        params: The parameters, or their shapes: the result has their structure and dtypes, and
            lies on their devices. Leaves that torch does not have are kept.
        state_dict: The model's `state_dict()`.
        names: What `match` returned.

    Raises:
        TreeMismatchError: Tensors are missing or have other shapes; the message lists them.
        TypeError: `state_dict` is no mapping, or has something else than tensors.

    >>> import jax.numpy as jnp, torch
    >>> from adaptax import interop
    >>> model = torch.nn.Linear(3, 1)
    >>> params = {"kernel": jnp.ones((3, 1)), "bias": jnp.ones(1)}
    >>> names = interop.torch.match(params, model.state_dict())
    >>> params = interop.torch.load_params(params, model.state_dict(), names)
    >>> bool(params["bias"][0] == model.bias.item())
    True
    """
    where = "load_params"
    rows = rows_of(where, params, names)
    _check_mapping(where, "state_dict", state_dict)
    leaves, structure = jax.tree.flatten(params, is_leaf=_tree.is_none)
    problems: dict[str, str] = {}
    new = list(leaves)
    for i, (row, leaf) in enumerate(zip(rows, leaves, strict=True)):
        if row is None:
            continue
        name = row.names[0]
        if name not in state_dict:
            problems[row.leaf] = f"{name} is not in state_dict"
            continue
        x = as_numpy(where, name, state_dict[name])
        if x.shape != row.torch_shape:
            problems[row.leaf] = f"{name} has shape {x.shape} against {row.torch_shape}"
        elif not jnp.issubdtype(x.dtype, np.number) and x.dtype != bool:
            problems[row.leaf] = f"{name} has dtype {x.dtype}"
        elif np.iscomplexobj(x) and not jnp.issubdtype(jnp.result_type(leaf), np.complexfloating):
            problems[row.leaf] = f"{name} is complex, and {row.leaf} is not"
        else:
            new[i] = placed(np.array(row.to_leaf(x), jnp.result_type(leaf)), leaf)
    if problems:
        raise TreeMismatchError(
            f"{where}: state_dict does not fit names at {len(problems)} of {len(leaves)} leaves: "
            f"{_checks.listed(problems.values())}.",
            list(problems),
        )
    return structure.unflatten(new)


def dump_params(params: Any, names: Names, like: Mapping[str, Any]) -> dict[str, Any]:
    """The `state_dict()` of a model of torch, with these parameters.

    For `model.load_state_dict`. Tied parameters are written under all of their names.

    Args:
        params: The parameters.
        names: What `match` returned.
        like: The model's `state_dict()`, for the rest: buffers, and dtypes. It is not changed.

    Raises:
        ModuleNotFoundError: PyTorch is not installed.
        TreeMismatchError: `like` lacks tensors, or has other shapes; the message lists them.

    >>> import jax.numpy as jnp, torch
    >>> from adaptax import interop
    >>> model = torch.nn.Linear(3, 1)
    >>> params = {"kernel": jnp.ones((3, 1)), "bias": jnp.ones(1)}
    >>> names = interop.torch.match(params, model.state_dict())
    >>> model.load_state_dict(interop.torch.dump_params(params, names, model.state_dict()))
    <All keys matched successfully>
    """
    where = "dump_params"
    rows = rows_of(where, params, names)
    _check_mapping(where, "like", like)
    problems: dict[str, str] = {}
    new = {}
    for row, leaf in zip(rows, jax.tree.leaves(params, is_leaf=_tree.is_none), strict=True):
        for name in () if row is None else row.names:
            assert row is not None
            if name not in like:
                problems[name] = f"{name} is not in like"
            elif (shape := tuple(np.shape(like[name]))) != row.torch_shape:
                problems[name] = f"{name} has shape {shape} against {row.torch_shape}"
            else:
                tensor = as_tensor(where, row.to_torch(np.asarray(leaf)))
                new[name] = tensor.to(getattr(like[name], "dtype", tensor.dtype))
    if problems:
        raise TreeMismatchError(
            f"{where}: like does not fit names at {len(problems)} of {len(names.matched)} leaves: "
            f"{_checks.listed(problems.values())}.",
            list(problems),
        )
    result: Any = copy.copy(like)  # with the metadata that torch hangs on it
    result.update(new)
    return result


def _check_mapping(where: str, name: str, value: Any) -> None:
    if not isinstance(value, Mapping):
        raise _checks.wrong_kind(where, name, "a model's state_dict()", value)
