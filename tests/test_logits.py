"""The one meaning of "logit": gauge, shapes, labels, and what is refused."""

import numpy as np
import pandas as pd
import pytest
import torch

from sklearn_kd._logits import (
    by_class_name,
    canonical_logits,
    centred,
    class_indices,
    class_probabilities,
    hard_labels,
    logits,
    n_logits,
    require_logits,
    what_else,
)


def test_centred_rows_sum_to_zero_and_keep_their_differences():
    z = torch.as_tensor(np.random.default_rng(0).normal(size=(2, 5, 3)))
    torch.testing.assert_close(centred(z).sum(dim=-1), torch.zeros(2, 5).double())
    torch.testing.assert_close(centred(z)[..., 1:] - centred(z)[..., :1], z[..., 1:] - z[..., :1])
    assert torch.equal(centred(z[0, :, 0]), z[0, :, 0])


@pytest.mark.parametrize("n_classes", [2, 3, 10])
def test_canonical_logits_have_the_probabilities_of_what_was_given(n_classes):
    given = np.random.default_rng(0).normal(size=(20, n_classes)) + 5
    canonical = canonical_logits(given, 20, n_classes, name="z")
    assert canonical.shape == ((20,) if n_classes == 2 else (20, n_classes))
    torch.testing.assert_close(canonical, logits(torch.as_tensor(given)))
    expected = np.exp(given) / np.exp(given).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(class_probabilities(canonical), expected, rtol=1e-12)
    np.testing.assert_array_equal(class_indices(canonical), given.argmax(axis=1))


@pytest.mark.parametrize("n_classes", [2, 3, 10])
def test_hard_labels_have_the_shape_of_logits(n_classes):
    y = torch.arange(12) % n_classes
    labels = hard_labels(y, n_logits(n_classes))
    expected = y if n_classes == 2 else torch.eye(n_classes, dtype=torch.long)[y]
    assert torch.equal(labels, expected)


def test_infinite_logits_are_refused_with_advice_that_helps():
    with pytest.raises(ValueError, match=r"z must be finite, but row 1 .* calibrate .*1 / n"):
        canonical_logits([0.0, -np.inf], 2, 2, name="z")


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"z has shape \(2, 3\), but 2 rows of 2 classes need"):
        canonical_logits(np.zeros((2, 3)), 2, 2, name="z")


# What is no logit


@pytest.mark.parametrize("order", [[2, 0, 1], [0, 1, 2]])
@pytest.mark.parametrize("names", [["a", "b", "c"], [3, 5, 7], [False, True, "x"]])
def test_columns_are_taken_by_name(order, names):
    values = np.arange(12.0).reshape(4, 3)
    classes = np.array(names, dtype=object)
    frame = pd.DataFrame(values, columns=names).iloc[:, order]
    np.testing.assert_array_equal(by_class_name(frame, classes, name="z"), values)
    as_strings = frame.rename(columns=str)
    np.testing.assert_array_equal(by_class_name(as_strings, classes, name="z"), values)


def test_columns_without_names_of_their_own_are_taken_by_position():
    assert (
        by_class_name(pd.DataFrame(np.zeros((2, 3))), np.array(["a", "b", "c"]), name="z") is None
    )
    assert by_class_name(np.zeros((2, 3)), np.array(["a", "b", "c"]), name="z") is None


@pytest.mark.parametrize("columns", [["a", "b", "d"], ["a", "b"], ["p_a", "p_b", "p_c"]])
def test_columns_of_other_names_are_refused(columns):
    frame = pd.DataFrame(np.zeros((2, len(columns))), columns=columns)
    with pytest.raises(ValueError, match=r"which are not the classes \['a', 'b', 'c'\]"):
        by_class_name(frame, np.array(["a", "b", "c"]), name="z")


RNG = np.random.default_rng(0)
PROBABILITIES = RNG.dirichlet(np.ones(4), size=20)
NOT_LOGITS = {
    "softmax": (PROBABILITIES, "probabilities"),
    "softmax of float32": (PROBABILITIES.astype(np.float32), "probabilities"),
    "two rows": (PROBABILITIES[:2], "probabilities"),
    "one-hot": (np.eye(4)[[0, 2, 1]], "probabilities"),
    "one sigmoid per class": (RNG.uniform(size=(20, 3)), "probabilities"),
    "vector": (PROBABILITIES[:, 0], "probabilities"),
    "column": (PROBABILITIES[:, :1], "probabilities"),
    "saturated": (np.r_[np.zeros(9), 1e-9, 1.0], "probabilities"),
    "labels": (np.array([0, 1, 1]), "labels"),
}


@pytest.mark.parametrize("case", NOT_LOGITS)
def test_probabilities_and_labels_are_no_logits(case):
    values, kind = NOT_LOGITS[case]
    values = torch.as_tensor(values)
    assert what_else(values) == kind
    with pytest.raises(ValueError, match=rf"z holds {kind}.*np\.log|z holds {kind}.*logit\("):
        require_logits(values, name="z")


@pytest.mark.parametrize(
    "values",
    [
        np.log(PROBABILITIES),
        np.log(PROBABILITIES) - np.log(PROBABILITIES).mean(axis=1, keepdims=True),
        np.zeros(20),
        np.zeros((20, 3)),
        np.full(20, 0.4),  # as of the share of a class
        np.array([0.3, 0.9]),  # a few may be so by chance
        np.r_[RNG.uniform(size=20), -0.1],
        np.r_[RNG.uniform(size=20), 1.1],
        PROBABILITIES[:1],
        np.array([1.0]),
        np.array([-1.0, 1.0, 1.0]),
    ],
)
def test_logits_are_logits(values):
    values = torch.as_tensor(values)
    assert what_else(values) is None
    require_logits(values, name="z")
