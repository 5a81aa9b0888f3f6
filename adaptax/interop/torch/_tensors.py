"""Tensors as arrays and back; reading a checkpoint without running what is in it."""

import io
import math
import os
import re
import zipfile
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
        ValueError: The file holds other objects, or is damaged; this is seen by the checksums that
            PyTorch writes since version 1.6.
        OSError: It is not there, or may not be read.

    >>> import io, torch
    >>> from adaptax import interop
    >>> file = io.BytesIO()
    >>> torch.save({"step": 3, "w": torch.ones(2)}, file)
    >>> interop.torch.load(io.BytesIO(file.getvalue()))
    {'step': 3, 'w': tensor([1., 1.])}
    """
    torch = torch_for("load")
    if isinstance(file, str | os.PathLike):
        open(file, "rb").close()  # what is missing or forbidden is said by Python
    try:
        _check_sums(file)
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes make torch raise nearly anything
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found is None:
            why = f"it is damaged, or was not written by torch.save ({type(error).__name__})."
        else:
            why = (
                f"it holds {found[1]}, and no code of a file is run. Where it was written, save "
                "the state_dict()s of model and optimizer, and nothing else."
            )
        raise ValueError(f"load: {file!r} can't be read: {why}") from error


def _check_sums(file: Any) -> None:
    """Compare the parts of a file with their checksums, which torch writes and doesn't read.

    Raises:
        BadZipFile: They differ.
    """
    start = file.tell() if hasattr(file, "tell") else 0
    if zipfile.is_zipfile(file):  # older versions of torch wrote something else
        with zipfile.ZipFile(file) as archive:
            for item in archive.infolist():
                if item.CRC != 0:  # 0 if torch was told to write none
                    with archive.open(item) as part:
                        while part.read(1 << 20):
                            pass
    if hasattr(file, "seek"):
        file.seek(start)


def as_numpy(where: str, name: str, x: Any) -> np.ndarray:
    """A tensor as an array, on the CPU; what is an array or a number already, as an array.

    Raises:
        TypeError: It is something else, or a tensor without data of its own.
    """
    if isinstance(x, np.ndarray | np.generic | jax.Array | float | int):
        return np.asarray(x)
    if not hasattr(x, "detach"):
        raise TypeError(f"{where}: {name} must be a tensor or an array, got {type(x).__name__}.")
    if str(x.layout) != "torch.strided":
        raise TypeError(f"{where}: {name} must be dense, got a tensor of layout {x.layout}.")
    try:
        return _strided_as_numpy(where, x.detach().cpu().resolve_conj().resolve_neg())
    except (TypeError, RuntimeError) as why:  # no data, or a format that nobody else has
        raise TypeError(f"{where}: {name} must have numbers as entries: {why}") from why


def _strided_as_numpy(where: str, x: Any) -> np.ndarray:
    dtype = str(x.dtype).removeprefix("torch.")
    if dtype not in _NOT_IN_NUMPY:
        return x.numpy()
    torch = torch_for(where)
    bits = getattr(torch, f"int{8 * x.element_size()}")
    return x.contiguous().view(bits).numpy().view(np.dtype(dtype))


def number(x: Any) -> float | None:
    """A finite real number, also of a tensor with one entry; None if it is no such number."""
    try:
        array = as_numpy("", "", x)
    except TypeError:
        return None
    kinds = (np.integer, np.floating)
    if array.size != 1 or not any(jnp.issubdtype(array.dtype, kind) for kind in kinds):
        return None
    value = float(array.reshape(()))
    return value if math.isfinite(value) else None


def flag(x: Any) -> bool | None:
    """A truth value, also as 0 or 1; None if it is something else."""
    if isinstance(x, bool | np.bool_):
        return bool(x)
    value = number(x)
    return None if value not in (0, 1) else bool(value)


def count(x: Any) -> int | None:
    """A number of steps; None if it is negative, not whole, or no number."""
    value = number(x)
    return int(value) if value is not None and value >= 0 and value % 1 == 0 else None


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
