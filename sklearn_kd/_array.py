"""The only crossing between arrays and torch tensors: device, dtype, and back.

Everything in `kernels`, `distillation`, `linalg` and `metrics` computes on torch tensors; this
module turns what a user hands over into such tensors and results into what the user expects.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from numbers import Integral
from typing import Any

import numpy as np
import torch
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
    """Return ``tensor`` in the array library, and on the device, of ``reference``."""
    if isinstance(reference, Tensor):
        return tensor.to(reference.device)
    if isinstance(reference, np.ndarray):
        return to_numpy(tensor)
    return reference.__array_namespace__().asarray(to_numpy(tensor), device=reference.device)


def on_arrays(function: Callable[..., Tensor]) -> Callable[..., Any]:
    """Let a function of tensors accept array-likes too, and answer in kind.

    Positional and keyword arguments other than strings, integers and ``None`` become float64
    tensors on the first argument's device. The result is a tensor where the first argument was
    one, and otherwise a numpy array or scalar; rounded once to float32 where that was float32.
    """

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        first = args[0] if args else next(iter(kwargs.values()))
        is_tensor = isinstance(first, Tensor)
        device = first.device if is_tensor else torch.device("cpu")

        def convert(value: Any) -> Any:
            if value is None or isinstance(value, (str, Integral)):
                return value
            return to_tensor(value, device=device)

        result = function(*map(convert, args), **{k: convert(v) for k, v in kwargs.items()})
        if str(getattr(first, "dtype", "")).endswith("float32"):
            result = result.to(torch.float32)
        return result if is_tensor else to_numpy(result)[()]

    return wrapper
