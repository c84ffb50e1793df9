"""Rows as tensors of every kind: fit, predict and score take the same, or say why not."""

import numpy as np
import pytest
import torch
from sklearn.datasets import make_classification
from sklearn.linear_model import LogisticRegression

from sklearn_kd import LinearizedKDStudent, LinearizedKDStudentCV, NTKTeacher, TorchTeacher
from sklearn_kd.metrics import neg_transfer_risk_scorer

X, Y = make_classification(n_samples=40, n_features=4, random_state=0)
X = X.astype(np.float32)
KINDS = {
    "plain": torch.tensor,
    "requires grad": lambda X: torch.tensor(X, requires_grad=True),
    "bfloat16": lambda X: torch.tensor(X).bfloat16(),
    "half": lambda X: torch.tensor(X).half(),
    "not contiguous": lambda X: torch.tensor(np.asfortranarray(X)).T.contiguous().T,
}
MODELS = {
    "student": lambda: LinearizedKDStudent(LogisticRegression()),
    "search": lambda: LinearizedKDStudentCV(LogisticRegression(), cv=2),
    "teacher": NTKTeacher,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", MODELS)
def test_tensors_are_rows(model, kind):
    rows = KINDS[kind](X)
    values = rows.detach().double().numpy()
    expected = MODELS[model]().fit(values, Y)
    if model != "teacher":  # scikit-learn's classifiers know plain tensors only
        teacher = LogisticRegression().fit(values, Y)
        z_t = {"teacher_logits": teacher.decision_function(values)}
        found = MODELS[model]().set_params(teacher=None).fit(rows, torch.tensor(Y), **z_t)
        expected = MODELS[model]().set_params(teacher=None).fit(values, Y, **z_t)
        scores = (neg_transfer_risk_scorer(m, rows, Y, **z_t) for m in (found, expected))
        assert len(set(scores)) == 1
    else:
        found = MODELS[model]().fit(rows, torch.tensor(Y))
    np.testing.assert_allclose(found.predict_proba(rows), expected.predict_proba(values), atol=1e-6)
    assert found.score(rows, Y) == expected.score(values, Y)


@pytest.mark.parametrize("model", MODELS)
def test_sparse_tensors_are_refused_before_anything_is_fitted(model):
    fitted = MODELS[model]()
    with pytest.raises(ValueError, match=r"X is a sparse tensor; pass its to_dense\(\)"):
        fitted.fit(torch.tensor(X).to_sparse(), Y)
    assert not hasattr(fitted, "classes_")
    with pytest.raises(ValueError, match=r"X is a sparse tensor"):
        MODELS[model]().fit(X, Y).predict(torch.tensor(X).to_sparse())


@pytest.mark.parametrize("kind", KINDS)
def test_a_torch_teacher_takes_the_same(kind):
    net = torch.nn.Linear(4, 1)
    teacher = TorchTeacher(net, classes=[0, 1])
    rows = KINDS[kind](X)
    expected = teacher.predict_proba(rows.detach().float().numpy())
    np.testing.assert_allclose(teacher.predict_proba(rows), expected, rtol=1e-6)
