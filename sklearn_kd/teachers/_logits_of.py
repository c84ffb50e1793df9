"""The logits of any classifier: its class is what `predict` says, its softmax `predict_proba`.

Symbols, with n rows and K classes:

=====  ==================  =============
s      ``scores``          (n,) or (n, K)
p      ``probabilities``   (n, K)
z_t    ``Logits.values``   (n,) or (n, K)
=====  ==================  =============
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from sklearn.frozen import FrozenEstimator
from torch import Tensor

from sklearn_kd._array import to_numpy, to_tensor
from sklearn_kd._classifier import LogitClassifier
from sklearn_kd._logits import are_saturated, by_class_name, canonical_logits, class_probabilities
from sklearn_kd._sklearn import move_to
from sklearn_kd.rows._streams import as_row_stream, is_streamed

METHODS = ("auto", "decision_function", "predict_proba")

# Relative to the largest logit of a row, classes this close are a tie, which rounding decides.
_TIE = 1e-6


class Reading(NamedTuple):
    """How the answers of a teacher are read: parameters of the student, and the teacher's rows."""

    method: str = "auto"
    probability_floor: float | str = "auto"
    n_rows: int = 0  # that the teacher was fitted on; of a frozen one, that it is asked about
    is_frozen: bool = False

    @property
    def floor(self) -> float:
        """The probability that stands for lower ones: 1/n, unless it is given."""
        floor = self.probability_floor
        return 1 / self.n_rows if isinstance(floor, str) else float(floor)

    @property
    def lifts_only_zeros(self) -> bool:
        """Whether the teacher's rows are unknown, so that its probabilities are taken as known."""
        return self.is_frozen and isinstance(self.probability_floor, str)


class Logits(NamedTuple):
    """A teacher's logits, and what was found on the way."""

    values: Tensor  # (n,) or (n, K), float64 on the CPU; (M, n) or (M, n, K) of M teachers
    method: str | None = None  # that they come from; None: given
    n_clipped: int = 0  # rows with a probability below the floor
    n_zero: int = 0  # rows with a probability that rounds to 0
    n_disagreeing: int = 0  # rows on which `predict` chooses another class
    is_certain: bool = False  # whether all probabilities are exactly 0 or 1
    cross_fitted: bool = False  # whether those of a row have seen the labels of other rows

    @classmethod
    def of_parts(cls, values: Tensor, parts: Sequence[Logits]) -> Self:
        """Return cross-fitted logits of all rows, from those of the folds."""
        methods = {part.method for part in parts}
        return cls(
            values,
            methods.pop() if len(methods) == 1 else "predict_proba",
            sum(part.n_clipped for part in parts),
            sum(part.n_zero for part in parts),
            sum(part.n_disagreeing for part in parts),
            all(part.is_certain for part in parts),
            cross_fitted=True,
        )


class Answers(NamedTuple):
    """What a fitted teacher says of rows; None where it was not asked or cannot say."""

    scores: Any
    probabilities: Any
    labels: np.ndarray | None


def logits_of(teacher: Any, X: Any, classes: np.ndarray, reading: Reading) -> Logits:
    """Return the logits of a fitted ``teacher`` on the rows ``X``.

    They are the scores of ``decision_function`` where these are log-odds, log p up to a constant
    of each row otherwise. "auto" takes scores for log-odds if their softmax is ``predict_proba``,
    and is not saturated.
    Rows that need not be in memory are read block by block.

    Raises
    ------
    ValueError
        If the teacher's classes are not ``classes``, its answers have another shape or are no
        probabilities, or nothing says that its scores are log-odds.
    TypeError
        If the teacher is no classifier.
    """
    name = name_of(teacher)
    if isinstance(_inside(teacher), LogitClassifier) and reading.method != "predict_proba":
        methods: tuple[str, ...] = ("decision_function",)
    else:
        methods = (*_methods_to_ask(teacher, reading.method, name), "predict")
    answers, n_rows = _answers(teacher, X, methods, classes), _n_rows(X)
    z = p = None
    if answers.probabilities is not None:
        p = _checked_probabilities(answers.probabilities, n_rows, classes, name)
    if answers.scores is not None and (p is None or _fits(answers.scores, p)):
        z = _scores_as_logits(answers.scores, n_rows, classes, name)
    is_taken = p is None or (z is not None and _is_log_odds(z, p, answers.scores.dtype))
    if z is not None and is_taken:
        found = Logits(z, "decision_function")
    else:
        assert p is not None
        found = _logits_of_probabilities(p, reading)
    if answers.labels is None:
        return found
    return found._replace(n_disagreeing=_n_disagreeing(found.values, answers.labels, classes))


def name_of(teacher: Any) -> str:
    """Return the name of a teacher's class, inside of a FrozenEstimator."""
    return type(_inside(teacher)).__name__


def _inside(teacher: Any) -> Any:
    return _inside(teacher.estimator) if isinstance(teacher, FrozenEstimator) else teacher


def _n_rows(X: Any) -> int:
    if is_streamed(X):
        return len(as_row_stream(X))
    return X.shape[0] if hasattr(X, "shape") else len(X)


def _methods_to_ask(teacher: Any, method: str, name: str) -> tuple[str, ...]:
    """Return the methods whose answers may become logits.

    Raises
    ------
    ValueError
        If the teacher lacks the method asked for, or has scores of an unknown kind alone.
    TypeError
        If it has neither method.
    """
    has = [word for word in METHODS[1:] if hasattr(teacher, word)]
    if not has:
        raise TypeError(
            f"teacher={name} has neither decision_function nor predict_proba; use a classifier "
            "with one of them, or pass teacher_logits to fit."
        )
    if method == "auto":
        if has == ["decision_function"]:
            raise ValueError(
                f"teacher={name} has a decision_function but no predict_proba, so nothing says "
                "that its scores are log-odds and not margins or votes. Calibrate it, as by "
                "CalibratedClassifierCV(teacher), or set teacher_method='decision_function' if "
                "the scores are log-odds. Those of decision_function_shape='ovo' never are."
            )
        return tuple(has)
    if method not in has:
        raise ValueError(
            f"teacher_method={method!r}, but teacher={name} has only {has[0]}; set "
            "teacher_method='auto', or calibrate the teacher by CalibratedClassifierCV(teacher)."
        )
    return (method,)


def _answers(teacher: Any, X: Any, methods: tuple[str, ...], classes: np.ndarray) -> Answers:
    """Return the answers of some methods, of all rows together, in the order of ``classes``."""
    if is_streamed(X):
        blocks = [to_numpy(block) for _, block in as_row_stream(X).blocks()]
        parts = [_answers(teacher, block, methods, classes) for block in blocks]
        columns = zip(*parts, strict=True)
        return Answers(
            *(None if column[0] is None else np.concatenate(column) for column in columns)
        )
    name, order = name_of(teacher), _class_order(teacher, classes)

    def numbers(method: str) -> Any:
        """Return s or p in the order of ``classes``."""
        if method not in methods:
            return None
        origin, given = f"{name}.{method}(X)", getattr(teacher, method)(X)
        named = by_class_name(given, classes, name=origin)
        is_single = str(getattr(given, "dtype", "")).endswith(("float32", "float16"))
        dtype = torch.float32 if is_single else torch.float64
        values = to_numpy(to_tensor(given if named is None else named, dtype=dtype, name=origin))
        if named is not None:
            return values
        if values.ndim == 2 and values.shape[1] == len(classes):
            return values[:, order]
        return -values if order == [1, 0] else values

    labels = None
    if "predict" in methods and hasattr(teacher, "predict"):
        labels = np.asarray(move_to(teacher.predict(X), xp=np, device="cpu")).reshape(-1)
    return Answers(numbers("decision_function"), numbers("predict_proba"), labels)


def _class_order(teacher: Any, classes: np.ndarray) -> list[int]:
    """Return the position of each class among the teacher's."""
    name = name_of(teacher)
    if not hasattr(teacher, "classes_"):
        raise TypeError(
            f"teacher={name} has no classes_ after fit, so it is no classifier; use a "
            "scikit-learn classifier, or pass teacher_logits to fit."
        )
    known = np.asarray(teacher.classes_).tolist()
    if len(known) != len(classes) or set(known) != set(classes.tolist()):
        raise ValueError(
            f"teacher={name} knows the classes {known}, but those of the student are "
            f"{classes.tolist()}; fit teacher and student on the same labels."
        )
    return [known.index(label) for label in classes.tolist()]


def _scores_as_logits(scores: np.ndarray, n_rows: int, classes: np.ndarray, name: str) -> Tensor:
    """Return s as logits."""
    n_classes, n_pairs = len(classes), len(classes) * (len(classes) - 1) // 2
    if n_classes > 3 and scores.shape == (n_rows, n_pairs):
        raise ValueError(
            f"{name}.decision_function(X) has {n_pairs} columns, one for each pair of the "
            f"{n_classes} classes: they are votes, and no logits. Set "
            "decision_function_shape='ovr' and calibrate the teacher by "
            "CalibratedClassifierCV(teacher)."
        )
    return canonical_logits(scores, n_rows, n_classes, name=f"{name}.decision_function(X)")


def _checked_probabilities(
    probabilities: np.ndarray, n_rows: int, classes: np.ndarray, name: str
) -> Tensor:
    """Return p in its own precision.

    Raises
    ------
    ValueError
        If it does not hold a probability of each class in each row.
    """
    p = torch.from_numpy(probabilities)
    if p.shape != (n_rows, len(classes)):
        raise ValueError(
            f"{name}.predict_proba(X) has shape {tuple(p.shape)}, but must have one column for "
            f"each of {len(classes)} classes, ({n_rows}, {len(classes)}). Let it return "
            "np.column_stack([1 - p, p]) if p is the probability of the second of two classes."
        )
    is_sound = (p > -1e-6).all(dim=1) & ((p.double().sum(dim=1) - 1).abs() < 1e-3)
    if not is_sound.all():
        row = int((~is_sound).nonzero()[0, 0])
        raise ValueError(
            f"{name}.predict_proba(X) must hold probabilities that sum to 1, but row {row} holds "
            f"{p[row].tolist()}. Correct the teacher, or pass its logits as teacher_logits to fit."
        )
    return p


def _fits(scores: np.ndarray, p: Tensor) -> bool:
    """Whether scores have the shape of logits, and are finite."""
    shapes = [tuple(p.shape)] + ([(len(p),), (len(p), 1)] if p.shape[1] == 2 else [])
    return scores.shape in shapes and bool(np.isfinite(scores).all())


def _is_log_odds(z: Tensor, p: Tensor, dtype: np.dtype) -> bool:
    """Whether softmax(z) is p, up to rounding; ``dtype`` is the precision in which z was given.

    Not of saturated scores, which claim more than any teacher knows: p has a floor. Low
    probabilities are compared by their digits; those that are differences from 1 have none below
    the resolution.
    """
    if are_saturated(z):
        return False
    eps = max(torch.finfo(p.dtype).eps, float(np.finfo(dtype).eps))
    softmax, p = class_probabilities(z), p.double()
    return bool(((softmax - p).abs() <= eps**0.5 * p + 8 * eps).all())


def _logits_of_probabilities(p: Tensor, reading: Reading) -> Logits:
    """Return z = log p, up to a constant of each row, with low probabilities lifted.

    Those below the floor are lifted to it. Where only zeros are, none is lifted above another
    probability of its row.
    """
    eps, floor, n_classes = torch.finfo(p.dtype).eps, reading.floor, p.shape[1]
    if floor * n_classes >= 1 and not isinstance(reading.probability_floor, str):
        raise ValueError(
            f"probability_floor={floor:g} leaves nothing to tell {n_classes} classes apart by; "
            f"set it below {1 / n_classes:.3g}, such as to 1 / n for a teacher fitted on n rows."
        )
    is_zero = p < eps
    if reading.lifts_only_zeros:
        smallest = p.where(p > 0, torch.inf).amin(dim=1, keepdim=True).clamp_min(eps)
        lifted = torch.where(p == 0, smallest.clamp_max(floor), p.clamp_min(eps))
        is_low = is_zero
    else:
        lifted, is_low = p.clamp_min(floor), p < floor
    logs = lifted.double().log()
    return Logits(
        canonical_logits(logs, len(p), p.shape[1], name="predict_proba(X)"),
        "predict_proba",
        n_clipped=int(is_low.any(dim=1).sum()),
        n_zero=int(is_zero.any(dim=1).sum()),
        is_certain=bool(((p == 0) | (p == 1)).all()),
    )


def _n_disagreeing(z: Tensor, labels: np.ndarray, classes: np.ndarray) -> int:
    """Return on how many rows the largest logit, but for ties, is not that of the label."""
    columns = torch.stack([torch.zeros_like(z), z], dim=1) if z.ndim == 1 else z
    index = {label: position for position, label in enumerate(classes.tolist())}
    positions = [index.get(label, -1) for label in labels.tolist()]
    chosen = torch.tensor(positions, device="cpu")
    top = columns.max(dim=1).values
    own = columns.gather(1, chosen.clamp_min(0)[:, None])[:, 0]
    margin = _TIE * (1 + columns.abs().max(dim=1).values)
    return int(((top - own > margin) | (chosen < 0)).sum())
