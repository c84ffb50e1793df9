"""A trained torch network as a teacher: frozen, and a scikit-learn classifier."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from numbers import Integral
from typing import Any, ClassVar, Self

import numpy as np
import torch
from sklearn.utils import check_array
from torch import Tensor, nn

from sklearn_kd._array import plain, resolve_device, to_tensor
from sklearn_kd._classifier import LogitClassifier
from sklearn_kd._logits import canonical_logits, what_else
from sklearn_kd._modules import naming_batch, on_device, require_input_shape, tensors_of
from sklearn_kd._sklearn import Interval, get_namespace
from sklearn_kd.rows._refusals import naming_columns, require_rows


class TorchTeacher(LogitClassifier):
    """A trained ``torch.nn.Module`` as a classifier that is fitted already.

    Give it to a student as ``teacher``: it is used as it is, without cross-fitting. On its own
    training rows the module hands back its training labels, so distil on others.

    Parameters
    ----------
    module : torch.nn.Module
        The network. It maps a batch of rows to one tensor of logits, before any softmax or sigmoid:
        one per class, (n, n_classes), or for two classes the log-odds of the second alone, (n,) or
        (n, 1). Log-probabilities, (n, n_classes), are logits too.
    classes : array-like of shape (n_classes,)
        Labels of the outputs, in the order of the outputs.
    preprocess : callable, default=None
        Applied to each batch before the module, such as a normalisation: takes a tensor of
        ``input_shape`` rows and returns what the module takes. A function that is to be pickled
        cannot be a lambda.
    input_shape : tuple of int, default=None
        Shape that each row is given, such as ``(3, 32, 32)`` for images that are stored as rows of
        3072 features. None: rows stay flat.
    batch_size : int, default=256
        Rows to evaluate at once.
    device : str or torch.device, default="auto"
        Where to evaluate. "auto" is CUDA where available, else the CPU. The module itself stays
        where it is: elsewhere a copy is evaluated.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Class labels, sorted; logits and probabilities are in their order.

    See Also
    --------
    LinearizedKDStudent : The student.
    sklearn.frozen.FrozenEstimator : The same for a fitted scikit-learn classifier.

    Notes
    -----
    The module is evaluated in eval mode without gradients, in the dtype of its parameters, and is
    left as it was, whatever mode it is in. It is copied neither by the constructor nor by
    :func:`~sklearn.base.clone`: further training changes the teacher too.

    Pickles hold the module with its tensors on the CPU, so that they load on every machine; as
    always with modules, its class must be importable there.

    Examples
    --------
    >>> import torch
    >>> from sklearn.datasets import load_breast_cancer
    >>> from sklearn.preprocessing import scale
    >>> from sklearn_kd import LinearizedKDStudent, TorchTeacher
    >>> X, y = load_breast_cancer(return_X_y=True)
    >>> X = scale(X)
    >>> net = torch.nn.Sequential(
    ...     torch.nn.Linear(30, 50), torch.nn.ReLU(), torch.nn.Linear(50, 2)
    ... )
    >>> rows, labels = torch.tensor(X[:200]).float(), torch.tensor(y[:200])
    >>> optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    >>> for _ in range(100):
    ...     optimizer.zero_grad()
    ...     torch.nn.functional.cross_entropy(net(rows), labels).backward()
    ...     optimizer.step()
    >>> teacher = TorchTeacher(net, classes=[0, 1])
    >>> student = LinearizedKDStudent(teacher, soft_ratio=0.7).fit(X[200:400], y[200:400])
    >>> student.score(X[400:], y[400:]) > 0.9
    True
    """

    _parameter_constraints: ClassVar[dict] = {
        "module": [nn.Module],
        "classes": ["array-like"],
        "preprocess": [callable, None],
        "input_shape": [tuple, list, None],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "device": [str, torch.device],
    }

    def __init__(
        self,
        module: nn.Module,
        classes: Any,
        *,
        preprocess: Callable[[Tensor], Tensor] | None = None,
        input_shape: Sequence[int] | None = None,
        batch_size: int = 256,
        device: str | torch.device = "auto",
    ) -> None:
        self.module = module
        self.classes = classes
        self.preprocess = preprocess
        self.input_shape = input_shape
        self.batch_size = batch_size
        self.device = device

    @property
    def classes_(self) -> np.ndarray:
        """Class labels, sorted."""
        labels = np.asarray(self.classes)
        classes = np.unique(labels)
        if labels.ndim != 1 or len(classes) < 2 or len(classes) < len(labels):
            raise ValueError(
                f"classes={self.classes!r} must hold the labels of the module's outputs, two or "
                "more and each once."
            )
        return classes

    def fit(self, X: Any, y: Any = None, **fit_params: Any) -> Self:
        """Do nothing: the module is trained already, and stays as it is.

        Parameters
        ----------
        X, y, **fit_params : object
            Ignored.

        Returns
        -------
        self : TorchTeacher
            The teacher.
        """
        return self

    def _check_new_rows(self, X: Any, method: str) -> Any:
        self._validate_params()
        require_rows(X)
        X = plain(X)
        xp, _ = get_namespace(X)
        with naming_columns(X, "encode or impute them first, in a pipeline"):
            X = check_array(X, dtype=[xp.float64, xp.float32], input_name="X")
        require_input_shape(self.input_shape, X.shape[1])
        return X

    def _logits(self, X: Any) -> Tensor:
        """Return the logits in the order of ``classes_``, float64 on the CPU."""
        classes = self.classes_
        outputs = torch.cat(list(self._outputs(X)))
        self._require_logits(outputs, len(classes))
        # Where the output of each sorted class stands, or of the only output the sign.
        order = np.argsort(np.asarray(self.classes))
        if outputs.shape[1] == 1:
            return outputs[:, 0] if order[0] == 0 else -outputs[:, 0]
        return canonical_logits(
            outputs[:, torch.from_numpy(order)], len(outputs), len(classes), name="module(X)"
        )

    def _outputs(self, X: Any) -> Iterator[Tensor]:
        """Yield the module's outputs for consecutive rows, (n, 1) or (n, K), as computed."""
        device = torch.empty(0, device=resolve_device(self.device)).device  # with its index
        module, preprocess = in_eval_mode(on_device(self.module, device)), self.preprocess
        if isinstance(preprocess, nn.Module):
            preprocess = in_eval_mode(on_device(preprocess, device))
        dtype = parameter_dtype(module)
        # Half precision would round integers, such as tokens, before `preprocess` sees them.
        rows_dtype = torch.promote_types(dtype, torch.float32)
        shape = (-1,) if self.input_shape is None else self.input_shape
        for start in range(0, X.shape[0], self.batch_size):
            batch = to_tensor(X[start : start + self.batch_size], dtype=rows_dtype, device=device)
            batch = batch.reshape(len(batch), *shape).clone()  # a module may work in place
            check = "the number of features, input_shape and preprocess"
            with (
                torch.inference_mode(),
                naming_batch(module, batch, owner="TorchTeacher", check=check),
            ):
                inputs = batch if preprocess is None else preprocess(batch)
                outputs = module(inputs.to(dtype) if inputs.is_floating_point() else inputs)
            require_outputs(self.module, outputs, len(batch))
            # A copy, made outside of inference mode: an ordinary tensor.
            yield outputs.reshape(len(batch), -1).to("cpu", torch.float64, copy=True)

    def _require_logits(self, outputs: Tensor, n_classes: int) -> None:
        name = type(self.module).__name__
        n_rows, n_outputs = outputs.shape
        if n_outputs != n_classes and (n_outputs, n_classes) != (1, 2):
            raise ValueError(
                f"module={name} has {n_outputs} output{'s' * (n_outputs > 1)} per row, but "
                f"classes={self.classes!r} names {n_classes}; give the label of each output, or "
                "two labels for a single output."
            )
        finite = outputs.isfinite().all(dim=1)
        if not finite.all():
            row = int((~finite).nonzero()[0, 0])
            raise ValueError(
                f"module={name} returned NaN or infinity on {int((~finite).sum())} of {n_rows} "
                f"rows, the first of them row {row}: {outputs[row].tolist()}. Check that the rows "
                "are scaled as in training, by preprocess or before, and that the module's "
                "weights are finite."
            )
        if what_else(outputs) is not None:
            raise ValueError(
                f"module={name} returns probabilities: all outputs are in [0, 1]. Logits are "
                "needed: leave out the last softmax or sigmoid, or return torch.log_softmax or "
                "torch.logit."
            )

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_clone__(self) -> Self:
        """Return a teacher with the same module: nothing trains it, so no copy is needed."""
        return type(self)(**self.get_params(deep=False))

    def __getstate__(self) -> dict:
        """Return the state with the module's tensors on the CPU, so that it loads anywhere."""
        cpu = torch.device("cpu")
        return {
            name: on_device(value, cpu) if isinstance(value, nn.Module) else value
            for name, value in super().__getstate__().items()
        }


def in_eval_mode(module: nn.Module) -> nn.Module:
    """Return ``module`` if all of it is in eval mode, else a copy that is, with the same tensors.

    To switch the module itself, and back, would disturb other threads that use it.
    """
    if not any(part.training for part in module.modules()):
        return module
    return copy.deepcopy(module, {id(tensor): tensor for tensor in tensors_of(module)}).eval()


def parameter_dtype(module: nn.Module) -> torch.dtype:
    """Return the dtype of the first floating-point parameter; float64 where there is none."""
    dtypes = (p.dtype for p in module.parameters() if p.is_floating_point())
    return next(dtypes, torch.float64)


def require_outputs(module: nn.Module, outputs: Any, n_rows: int) -> None:
    """Raise unless the outputs of ``module`` may be logits, as far as their shape and dtype tell.

    Raises
    ------
    TypeError
        If they are no tensor.
    ValueError
        If they are no row of floating-point numbers for each of ``n_rows``.
    """
    name = type(module).__name__
    if not isinstance(outputs, Tensor):
        raise TypeError(
            f"module={name} returned a {type(outputs).__name__}, but one tensor of logits is "
            "needed; wrap it in a module that returns only its logits."
        )
    if not outputs.is_floating_point() or outputs.ndim not in (1, 2):
        raise ValueError(
            f"module={name} returned a tensor of shape {tuple(outputs.shape)} and dtype "
            f"{outputs.dtype} for {n_rows} rows, but floating-point logits of shape "
            "(n_rows,) or (n_rows, n_outputs) are needed."
        )
    if len(outputs) != n_rows:
        raise ValueError(
            f"module={name} returned {len(outputs)} rows for a batch of {n_rows}; it must "
            "return one row of logits for each."
        )
