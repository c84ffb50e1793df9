"""The only crossing between arrays and torch tensors: device, dtype, and back.

Everything in `kernels`, `distillation`, `linalg` and `metrics` computes on torch tensors; this
module turns what a user hands over into such tensors and results into what the user expects.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import reprlib
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from sklearn.utils import Bunch
from torch import Tensor

DTYPES = {"float32": torch.float32, "float64": torch.float64}


def resolve_device(device: str | torch.device) -> torch.device:
    """Return the torch device that ``device`` names; ``"auto"`` is CUDA where there is one."""
    if str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
        torch.empty(0, device=resolved)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device={device!r} is not available here ({error}); use device='cpu' or 'auto'."
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
) -> Tensor:
    """Return ``array`` (numpy, torch or any DLPack array) as a tensor; no copy where avoidable."""
    if isinstance(array, Tensor):
        return array.detach().to(device=device, dtype=dtype)
    if not isinstance(array, np.ndarray) and hasattr(array, "__dlpack__"):
        return torch.from_dlpack(array).to(device=device, dtype=dtype)
    array = np.asarray(array)
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = array.copy()  # torch has no read-only tensors and no negative strides
    return torch.as_tensor(array).to(device=device, dtype=dtype)


def to_numpy(tensor: Tensor) -> np.ndarray:
    """Return ``tensor`` as a numpy array on the host; shares memory with a CPU tensor."""
    return tensor.detach().cpu().numpy()


def like(tensor: Tensor, reference: Any) -> Any:
    """Return ``tensor`` in the array library, and on the device, of ``reference``.

    It is a numpy array for a reference of no array library, such as a stream of rows.
    """
    if isinstance(reference, Tensor):
        return tensor.to(reference.device)
    if isinstance(reference, np.ndarray) or not hasattr(reference, "__array_namespace__"):
        return to_numpy(tensor)
    return reference.__array_namespace__().asarray(to_numpy(tensor), device=reference.device)


def is_array_like(value: Any) -> bool:
    """Whether ``value`` is data: an array, a nested list or a float; not a count or an option."""
    if isinstance(value, (str, Integral, np.bool_)):
        return False
    return isinstance(value, (Real, Sequence)) or any(
        hasattr(value, name) for name in ("__array__", "__dlpack__")
    )


def numbers(value: Any, name: str, device: str | torch.device = "cpu") -> Tensor:
    """Return what a user gave as ``name`` as a float64 tensor.

    Raises
    ------
    TypeError
        If it does not hold real numbers; names ``name``.
    ValueError
        If it is a nested sequence whose rows differ in length.
    """
    message = f"{name} must be a number or an array of real numbers; got"
    is_complex = "complex" in str(getattr(value, "dtype", type(value)))
    if is_complex or not (isinstance(value, (Integral, np.bool_)) or is_array_like(value)):
        raise TypeError(f"{message} {reprlib.repr(value)} of type {type(value).__name__}.")
    try:
        return to_tensor(value, device=device)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{message} {reprlib.repr(value)} ({error}).") from error


def on_arrays(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let a function of tensors accept array-likes too, and answer in kind.

    Array-like arguments become float64 tensors on the device of the first of them; all others
    (strings, integers, ``None``, a frame, a generator) pass through. Tensors in the result, also
    inside a tuple or a dict, which comes back as a `Bunch`, stay tensors where the first
    array-like argument was one, and otherwise become numpy arrays or scalars; floating ones are
    rounded once to float32 where that was float32.
    """
    names = list(inspect.signature(function).parameters)

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        first = next(filter(is_array_like, (*args, *kwargs.values())), None)
        is_tensor = isinstance(first, Tensor)
        is_single = str(getattr(first, "dtype", "")).endswith("float32")
        device = first.device if isinstance(first, Tensor) else torch.device("cpu")

        def convert(name: str, value: Any) -> Any:
            return numbers(value, name, device) if is_array_like(value) else value

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

        # More arguments than there are names are the function's own TypeError.
        positional = [convert(*pair) for pair in itertools.zip_longest(names[: len(args)], args)]
        return answer(function(*positional, **{k: convert(k, v) for k, v in kwargs.items()}))

    return wrapper
