"""Tensors as arrays and back; reading a checkpoint without running what is in it."""

import io
import os
import pickle
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Formats that numpy has not; ml_dtypes, which jax brings, has them under torch's names.
_NOT_IN_NUMPY = ("bfloat16", "float8_e4m3fn", "float8_e5m2")


def torch_for(function: str) -> Any:
    """The module `torch`."""
    try:
        import torch
    except ModuleNotFoundError as error:
        message = f"{function} needs PyTorch: pip install 'adaptax[torch]'."
        raise ModuleNotFoundError(message, name=error.name) from error
    return torch


def load(file: str | os.PathLike[str] | io.IOBase) -> Any:
    """Read what `torch.save` wrote, tensors on the CPU, without running code from the file.

    Only tensors, numbers, text and plain containers are read (PyTorch's ``weights_only``).

    Args:
        file: A path, or an open binary file.

    Raises:
        ModuleNotFoundError: PyTorch is not installed.
        ValueError: The file holds other objects, or is damaged.

    >>> import io, torch
    >>> from adaptax import interop
    >>> file = io.BytesIO()
    >>> torch.save({"step": 3, "w": torch.ones(2)}, file)
    >>> interop.torch.load(io.BytesIO(file.getvalue()))
    {'step': 3, 'w': tensor([1., 1.])}
    """
    torch = torch_for("load")
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError, KeyError, RuntimeError) as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found is None:
            why = f"it is damaged, or was not written by torch.save ({type(error).__name__})."
        else:
            why = (
                f"it holds {found[1]}, and no code of a file is run. Where it was written, save "
                "the state_dict()s of model and optimizer, and nothing else."
            )
        raise ValueError(f"load: {file!r} can't be read: {why}") from error


def as_numpy(where: str, name: str, x: Any) -> np.ndarray:
    """A tensor as an array, on the CPU; what is an array or a number already, as an array."""
    if isinstance(x, np.ndarray | np.generic | jax.Array | float | int):
        return np.asarray(x)
    if not hasattr(x, "detach"):
        raise TypeError(f"{where}: {name} must be a tensor or an array, got {type(x).__name__}.")
    if str(x.layout) != "torch.strided":
        raise TypeError(f"{where}: {name} must be dense, got a tensor of layout {x.layout}.")
    x = x.detach().cpu().resolve_conj().resolve_neg()
    dtype = str(x.dtype).removeprefix("torch.")
    if dtype not in _NOT_IN_NUMPY:
        return x.numpy()
    torch = torch_for(where)
    bits = getattr(torch, f"int{8 * x.element_size()}")
    return x.contiguous().view(bits).numpy().view(np.dtype(dtype))


def as_tensor(where: str, x: Any) -> Any:
    """An array as a tensor that shares nothing with it."""
    torch = torch_for(where)
    x = np.array(x, order="C")
    if x.dtype.name not in _NOT_IN_NUMPY:
        return torch.from_numpy(x)
    dtype = getattr(torch, x.dtype.name)
    return torch.from_numpy(x.view(f"int{8 * x.dtype.itemsize}")).view(dtype)


def placed(x: np.ndarray, like: Any) -> jax.Array:
    """The array as jax's, on the devices of another, if that is bound to some."""
    bound = isinstance(like, jax.Array) and like.committed
    return jax.device_put(x, like.sharding) if bound else jnp.asarray(x)
