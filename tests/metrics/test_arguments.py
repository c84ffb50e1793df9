"""Every public function of metrics and distillation, with every kind of bad argument."""

import inspect

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from sklearn_kd import LinearizedKDStudent, distillation, metrics
from sklearn_kd.kernels import NTK
from sklearn_kd.linalg import TangentFrame

X = np.linspace(-1, 1, 6)[:, None] ** [[1, 2]]
Z = np.array([-2.0, -1.0, -0.5, 0.5, 1.0, 2.0])
Y = np.array([0, 0, 1, 0, 1, 1])
FRAME = TangentFrame(NTK().to_torch(), torch.as_tensor(X))
ROWS, SCALAR, VECTOR, GRID, WORD, OTHER = "rows", "scalar", "vector", "grid", "word", "other"

# Public function -> its arguments, each with a good value and what it is.
# rows: one value a row, so a column, no rows at all and a single number are wrong.
# vector: likewise, but of a length of its own. grid: a number or an array of any shape.
CALLS = {
    distillation.effective_logits: {
        "teacher_logits": (Z, GRID),
        "y": (Y, GRID),
        "soft_ratio": (0.5, GRID),
        "temperature": (2.0, GRID),
        "temperature_scaling": ("none", WORD),
    },
    distillation.correction_logits: {
        "teacher_logits": (Z, GRID),
        "y": (Y, GRID),
        "temperature": (2.0, GRID),
    },
    distillation.correction_margin: {
        "soft_ratio": (0.9, GRID),
        "temperature": (2.0, GRID),
        "temperature_scaling": ("none", WORD),
    },
    distillation.equivalent_soft_ratio: {
        "weight": (0.5, GRID),
        "temperature": (2.0, GRID),
        "temperature_scaling": ("squared", WORD),
        "reduction": ("mean", WORD),
        "n_classes": (3, SCALAR),
    },
    distillation.toolkit_weight: {
        "soft_ratio": (0.5, GRID),
        "temperature": (2.0, GRID),
        "temperature_scaling": ("squared", WORD),
        "reduction": ("mean", WORD),
        "n_classes": (3, SCALAR),
    },
    distillation.diagnose_teacher: {
        "teacher_logits": (Z, ROWS),
        "y": (Y, ROWS),
        "soft_ratios": ([0.5, 1.0], VECTOR),
        "temperatures": ([2.0], VECTOR),
        "temperature_scaling": ("none", WORD),
        "tolerance": (0.05, SCALAR),
    },
    metrics.accumulative_angle_distribution: {
        "angles": ([1.0, 1.2], VECTOR),
        "beta": (1.1, GRID),
    },
    metrics.binomial_upper_bound: {
        "n_errors": (2, GRID),
        "n_rows": (10, GRID),
        "confidence_level": (0.95, SCALAR),
    },
    metrics.data_inefficiency: {
        "norms": (np.arange(1.0, 7.0), ROWS),
        "sizes": ([2, 3], VECTOR),
        "window": (2.0, SCALAR),
    },
    metrics.feature_angles: {
        "effective_logits": (Z, ROWS),
        "squared_feature_norms": (np.ones(6), ROWS),
        "oracle_norm": (4.0, SCALAR),
    },
    metrics.learning_curve_forecast: {
        "sizes": ([100, 200], VECTOR),
        "errors": ([[0.2, 0.1], [0.3, 0.2]], OTHER),
        "target_sizes": ([400], VECTOR),
        "floor": (0.05, SCALAR),
        "n_test": (100, SCALAR),
        "confidence": (0.8, SCALAR),
    },
    metrics.hard_label_effect: {
        "frame": (FRAME, OTHER),
        "teacher_logits": (Z, ROWS),
        "y": (Y, ROWS),
        "temperature": (2.0, SCALAR),
        "ground_truth_logits": (Z[::-1].copy(), ROWS),
        "initial_logits": (Z / 10, ROWS),
        "oracle_norm": (3.0, SCALAR),
        "n_bootstraps": (10, SCALAR),
        "confidence_level": (0.9, SCALAR),
        "random_state": (0, OTHER),
    },
    metrics.phuong_lampert_bound: {"feature_angles": ([1.0, 1.2], VECTOR), "n_rows": (10, GRID)},
    metrics.power_function_bound: {
        "effective_logits": (Z, ROWS),
        "new_directions": (np.full(6, 0.1), ROWS),
        "oracle_norm": (3.0, SCALAR),
        "student_norm": (2.0, GRID),
    },
    metrics.transfer_risk: {
        "teacher_logits": (Z, ROWS),
        "student_logits": (Z[::-1].copy(), ROWS),
        "sample_weight": (np.ones(6), ROWS),
    },
    metrics.transfer_risk_bound: {
        "feature_angles": ([1.0, 1.2], VECTOR),
        "weight_change_angle": (0.2, GRID),
    },
    metrics.weight_change_angles: {
        "frame": (FRAME, OTHER),
        "effective_logits": (Z, ROWS),
        "initial_logits": (Z[::-1].copy(), ROWS),
        "sizes": ([2, 3], VECTOR),
    },
}
# Where zero is a value like any other, and where a negative one is.
ZERO_IS_FINE = {
    "teacher_logits",
    "student_logits",
    "effective_logits",
    "initial_logits",
    "ground_truth_logits",
    "y",
    "beta",
    "n_errors",
    "angles",
    "feature_angles",
    "weight_change_angle",
    "new_directions",
    "student_norm",
    "tolerance",
    "floor",
}
SIGNED = {
    "teacher_logits",
    "student_logits",
    "effective_logits",
    "initial_logits",
    "ground_truth_logits",
    "beta",
}


def bad_values(name, good, kind):
    """Values of the wrong kind or range, each with what is wrong."""
    yield "an estimator", LogisticRegression()
    yield "a string", "0.5"
    yield "a dict", {"a": 1.0}
    yield "complex", np.full(np.shape(good), 1j)
    if kind == WORD:
        yield "another word", "often"
        yield "a number", 2.0
        return
    if kind == OTHER:
        yield "a float", 0.5
        return
    yield "strings", ["a", "b"]
    yield "ragged", [[1.0], [1.0, 2.0]]
    yield "nan", np.full(np.shape(good), np.nan)
    yield "infinite", np.full(np.shape(good), np.inf)
    if name not in SIGNED:
        yield "negative", -np.ones_like(good, dtype=float)
    if name not in ZERO_IS_FINE:
        yield "zero", np.zeros_like(good, dtype=float)
    if kind == SCALAR:
        yield "two of them", np.full(2, good)
    if kind in (ROWS, VECTOR):
        yield "empty", np.empty(0)
    if kind == ROWS:
        yield "a column", np.asarray(good)[:, None]
        yield "0-d", np.asarray(good)[0]
        if name != "norms":
            yield "too few rows", good[:5]


CASES = [
    pytest.param(function, name, value, id=f"{function.__name__}-{name}-{what}")
    for function, arguments in CALLS.items()
    for name, (good, kind) in arguments.items()
    for what, value in bad_values(name, good, kind)
    # a loss of hard labels alone has a weight
    if (function, name, what) != (distillation.toolkit_weight, "soft_ratio", "zero")
]


def test_every_public_function_and_argument_is_walked():
    public = {
        getattr(module, name)
        for module in (distillation, metrics)
        for name in module.__all__
        if inspect.isfunction(getattr(module, name))
    }
    assert public == set(CALLS)
    for function, arguments in CALLS.items():
        assert list(inspect.signature(function).parameters) == list(arguments)


@pytest.mark.parametrize("function", CALLS, ids=lambda f: f.__name__)
def test_good_arguments_pass(function):
    function(**{name: good for name, (good, _) in CALLS[function].items()})


@pytest.mark.parametrize(("function", "name", "value"), CASES)
def test_a_bad_argument_is_an_error_that_names_it(function, name, value):
    arguments = {key: good for key, (good, _) in CALLS[function].items()} | {name: value}
    with pytest.raises((TypeError, ValueError), match=rf"(?s)\b{name.rstrip('s')}s?\b"):
        function(**arguments)


@pytest.mark.parametrize("function", [metrics.hard_label_effect, metrics.weight_change_angles])
def test_swapped_frame_and_logits(function):
    with pytest.raises(TypeError, match="frame must be a TangentFrame; got"):
        function(Z, FRAME, **{"y": Y, "temperature": 2.0} if "y" in CALLS[function] else {})


@pytest.mark.parametrize(
    "function", [distillation.effective_logits, distillation.correction_logits]
)
@pytest.mark.parametrize("columns", [("teacher_logits",), ("y",)])
def test_a_column_against_a_vector_is_no_square(function, columns):
    arguments = {key: good for key, (good, _) in CALLS[function].items()}
    arguments |= {key: arguments[key][:, None] for key in columns}
    with pytest.raises(ValueError, match="every logit would meet every label"):
        function(**arguments)


@pytest.mark.parametrize(
    "scorer", [metrics.neg_transfer_risk_scorer, metrics.neg_data_inefficiency_scorer], ids=repr
)
@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.zeros(6), "sample_weight are 0 for all 6 rows"),
        (-np.ones(6), "sample_weight must be non-negative and finite; got -1.0 at index 0"),
        (np.full(6, np.nan), "sample_weight must be non-negative and finite; got nan"),
        (np.ones((6, 1)), "sample_weight must have shape"),
        (np.ones(5), "sample_weight must have shape"),
        ("balanced", "sample_weight must be a number or an array"),
    ],
)
def test_scorers_refuse_weights_that_make_no_mean(scorer, weights, message):
    student = LinearizedKDStudent().fit(X, Y, teacher_logits=Z)
    with pytest.raises((TypeError, ValueError), match=message):
        scorer(student, X[::-1] / 2, Y, teacher_logits=Z, sample_weight=weights)


@pytest.mark.parametrize("estimator", ["student", StandardScaler(), None, X])
def test_scorers_refuse_what_is_no_student(estimator):
    with pytest.raises(TypeError, match="is not a LinearizedKDStudent"):
        metrics.neg_transfer_risk_scorer(estimator, X, Y)
