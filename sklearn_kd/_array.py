"""The only crossing between arrays and torch tensors: device, dtype, and back.

Everything in `kernels`, `distillation`, `linalg` and `metrics` computes on torch tensors. This
module converts a user's arrays to tensors, and results back to the user's array library.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import os
from collections.abc import Callable, Sequence
from decimal import Decimal
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from sklearn.utils import Bunch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

DTYPES = {"float32": torch.float32, "float64": torch.float64}


def resolve_device(device: str | torch.device) -> torch.device:
    """Return the torch device that ``device`` names; ``"auto"`` is CUDA where there is one."""
    if str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
        torch.empty(0, device=resolved)
    except (RuntimeError, AssertionError) as error:
        is_gpu = str(device).lower().startswith(("gpu", "cuda")) and "cuda" not in str(device)
        hint = "; GPUs are 'cuda'" if is_gpu else ""
        raise ValueError(
            f"device={device!r} is not available here ({error}); use device='cpu' or 'auto'{hint}."
        ) from error
    return resolved


def resolve_dtype(dtype: str) -> torch.dtype:
    """Return the torch dtype that ``dtype`` names; ``"auto"`` is float64, never float32."""
    return torch.float64 if dtype == "auto" else DTYPES[dtype]


def to_tensor(
    array: Any,
    *,
    dtype: torch.dtype = torch.float64,
    device: str | torch.device = "cpu",
    copy: bool = False,
    name: str = "the input",
) -> Tensor:
    """Return ``array`` as a tensor of real numbers, without a gradient.

    Parameters
    ----------
    array : array-like
        A numpy array of any byte order, a tensor, any DLPack array, a data frame or series, or
        nested lists.
    dtype : torch.dtype, default=torch.float64
    device : str or torch.device, default="cpu"
    copy : bool, default=False
        Whether the result must not share memory with ``array``. Otherwise it is copied only if
        necessary.
    name : str, default="the input"
        Name of ``array`` in errors.

    Raises
    ------
    ValueError
        If ``array`` holds anything but real numbers, is sparse, or has masked entries.
    """
    if not isinstance(array, Tensor):
        array = _from_foreign(array, name)
    if array.layout != torch.strided:
        raise ValueError(f"{name} is a sparse tensor; pass its to_dense().")
    if array.is_complex():
        raise ValueError(f"{name} holds complex numbers; pass real ones, such as its real part.")
    tensor = array.detach().to(device=device, dtype=dtype, copy=copy)
    return tensor.clone() if tensor.is_inference() else tensor  # kernels may need gradients of it


def plain(X: Any, name: str = "X") -> Any:
    """Return a tensor for scikit-learn to check: without a gradient, in a dtype of numpy.

    Everything else is returned as it is.

    Raises
    ------
    ValueError
        If it is a sparse tensor.
    """
    if not isinstance(X, Tensor):
        return X
    if X.layout != torch.strided:
        raise ValueError(f"{name} is a sparse tensor; pass its to_dense().")
    return X.detach().float() if X.dtype == torch.bfloat16 else X.detach()


def refuse_data_sets(value: Any, name: str) -> None:
    """Raise `TypeError` for a data set or loader of torch."""
    if isinstance(value, (Dataset, DataLoader)):
        raise TypeError(
            f"{name} is a {type(value).__name__} of torch; pass arrays: X of shape (n_samples, "
            "n_features), as by numpy.stack([x.ravel() for x, label in dataset]), and y of shape "
            "(n_samples,). Rows that do not fit into memory go into a folder of .npy files, which "
            "solver='nystrom' reads."
        )


def _from_foreign(array: Any, name: str) -> Tensor:
    """Return an array that is no tensor as a tensor, in a dtype that holds its values."""
    refuse_data_sets(array, name)
    if hasattr(array, "toarray"):
        raise ValueError(f"{name} is a sparse matrix; pass its toarray().")
    if not isinstance(array, np.ndarray) and hasattr(array, "__dlpack__"):
        try:
            return torch.from_dlpack(array)
        except BufferError:  # read-only: numpy exports such arrays from 2.1 on
            pass
    if np.ma.is_masked(array):
        raise ValueError(f"{name} has masked entries; fill or drop them.")
    array = require_numbers(array, name)
    if array.dtype.char in "gG":  # torch has no longer floats than float64
        array = array.astype(np.float64 if array.dtype.kind == "f" else np.complex128)
    # torch has no other byte order, no read-only tensors and no negative strides.
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = array.copy()
    return torch.from_numpy(array)


def require_numbers(array: Any, name: str) -> np.ndarray:
    """Return an array-like as a numpy array of numbers, complex ones too.

    Raises
    ------
    ValueError
        If it is no array, or holds anything but numbers.
    """
    try:
        array = np.asarray(array)
    except ValueError as error:
        raise ValueError(f"{name} is no array: {error}.") from error
    if array.dtype.kind == "O":
        array = _numbers(array, name)
    if array.dtype.kind not in "biufc":
        raise ValueError(f"{name} holds {array.dtype} values; {_convert(name)}")
    return array


def _convert(name: str) -> str:
    """Return the remedy for values that are no numbers."""
    if name != "y":
        return "convert them to numbers."
    return (
        "encode the labels by their place among the sorted classes, as "
        "numpy.unique(y, return_inverse=True)[1] does."
    )


def _numbers(array: np.ndarray, name: str) -> np.ndarray:
    """Return an array of Python objects as float64, if all of them are real numbers."""
    for value in array.flat:
        if not isinstance(value, (Real, Decimal, np.bool_)):
            raise ValueError(
                f"{name} holds {value!r}, a {type(value).__name__}, among its objects; "
                f"{_convert(name)}"
            )
    return array.astype(np.float64)


def to_numpy(tensor: Tensor) -> np.ndarray:
    """Return ``tensor`` as a numpy array on the host; shares memory with a CPU tensor."""
    return tensor.detach().cpu().numpy()


def like(values: Tensor | np.ndarray, reference: Any, *, copy: bool = False) -> Any:
    """Return ``values`` in the array library, and on the device, of ``reference``.

    The result is a numpy array if the reference belongs to no array library, such as a stream of
    rows, or if only numpy has the dtype: strings, dates, objects.

    Parameters
    ----------
    values : Tensor or ndarray
    reference : object
    copy : bool, default=False
        Whether the result must not share memory with ``values``, such as a fitted attribute.
    """
    is_numpy = isinstance(reference, np.ndarray) or not (
        isinstance(reference, Tensor) or hasattr(reference, "__array_namespace__")
    )
    if isinstance(values, np.ndarray):
        if is_numpy or values.dtype.kind not in "biuf" or values.dtype.char == "g":
            return values.copy() if copy else values
        values = _from_foreign(values, "the values")
    if isinstance(reference, Tensor):
        return values.detach().to(reference.device, copy=copy)
    array = values.detach().to("cpu", copy=copy).numpy()
    if is_numpy:
        return array
    return reference.__array_namespace__().asarray(array, device=reference.device)


def is_array_like(value: Any) -> bool:
    """Whether ``value`` is data: an array, a nested list or a float; not a count or an option."""
    if isinstance(value, (str, bytes, Integral, np.bool_)):
        return False
    return isinstance(value, (Real, Decimal, Sequence)) or any(
        hasattr(value, name) for name in ("__array__", "__dlpack__", "toarray")
    )


# A forked child inherits OpenMP's record of its threads but not the threads, and would wait for
# them forever. It therefore computes on one thread.
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=functools.partial(torch.set_num_threads, 1))


def on_arrays(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let a function of tensors accept array-likes too, and return the same kind.

    Array-like arguments become float64 tensors on the device of the first of them; all others
    (strings, integers, ``None``, a frame, a generator) pass through. Tensors in the result, also
    inside a tuple or a dict, stay tensors if the first array-like argument was one. Otherwise they
    become numpy arrays or scalars. Floating results are rounded once to float32 if that argument
    was float32. A dict comes back as a `Bunch`.
    """
    names = list(inspect.signature(function).parameters)

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        first = next(filter(is_array_like, (*args, *kwargs.values())), None)
        is_tensor = isinstance(first, Tensor)
        dtype = getattr(first, "dtype", "")
        is_single = str(getattr(dtype, "name", dtype)).endswith("float32")
        device = first.device if isinstance(first, Tensor) else torch.device("cpu")

        def convert(value: Any, name: str) -> Any:
            return to_tensor(value, device=device, name=name) if is_array_like(value) else value

        def answer(result: Any) -> Any:
            if isinstance(result, dict):
                return Bunch(**{name: answer(value) for name, value in result.items()})
            if isinstance(result, tuple):
                return tuple(map(answer, result))
            if not isinstance(result, Tensor):
                return result
            if is_single and result.is_floating_point():
                result = result.to(torch.float32)
            return result.to(device) if is_tensor else to_numpy(result)[()]

        tensors = itertools.starmap(convert, itertools.zip_longest(args, names[: len(args)]))
        return answer(function(*tensors, **{k: convert(v, k) for k, v in kwargs.items()}))

    return wrapper
