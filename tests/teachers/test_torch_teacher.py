"""TorchTeacher: a trained module as a frozen classifier; and skorch's networks as teachers."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
import torch
from joblib import parallel_config
from scipy.special import softmax
from sklearn import config_context
from sklearn.base import clone, is_classifier
from sklearn.datasets import load_breast_cancer, load_iris
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler, scale
from sklearn.utils.validation import check_is_fitted
from torch import nn

from sklearn_kd import LinearizedKDStudent, LinearizedKDStudentCV, TorchTeacher
from sklearn_kd.metrics import neg_transfer_risk_scorer


def network(n_features, n_outputs, seed=0):
    """Return a network whose outputs depend on its mode: batch normalisation and dropout."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Linear(n_features, 16),
            nn.BatchNorm1d(16),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(16, n_outputs),
        )
        net(torch.randn(64, n_features))  # moves the running statistics
    return net.train()


def outputs_of(net, X, dtype=torch.float32):
    net = copy.deepcopy(net).eval()
    return net(torch.tensor(X, dtype=dtype)).detach().double().numpy()


ROWS = np.random.default_rng(0).normal(size=(37, 4))


@pytest.mark.parametrize(
    ("n_outputs", "classes"), [(1, [0, 1]), (2, [0, 1]), (2, ["b", "a"]), (1, ["b", "a"])]
)
def test_two_classes_carry_the_log_odds_of_the_second(n_outputs, classes):
    net = network(4, n_outputs)
    teacher = TorchTeacher(net, classes)
    raw = outputs_of(net, ROWS)
    z = raw[:, 0] if n_outputs == 1 else raw[:, 1] - raw[:, 0]
    z = z if classes == [0, 1] else -z
    assert teacher.classes_.tolist() == sorted(classes)
    np.testing.assert_allclose(teacher.decision_function(ROWS), z, rtol=1e-12)
    probabilities = 1 / (1 + np.exp(-z))
    np.testing.assert_allclose(
        teacher.predict_proba(ROWS), np.stack([1 - probabilities, probabilities], axis=1)
    )
    assert (teacher.predict(ROWS) == np.array(sorted(classes))[(z > 0).astype(int)]).all()


def test_more_classes_carry_centred_logits_in_the_order_of_the_sorted_classes():
    net = network(4, 3)
    teacher = TorchTeacher(net, ["oak", "ash", "elm"])
    raw = outputs_of(net, ROWS)[:, [1, 2, 0]]
    assert teacher.classes_.tolist() == ["ash", "elm", "oak"]
    z = teacher.decision_function(ROWS)
    assert z.dtype == np.float64
    np.testing.assert_allclose(z, raw - raw.mean(axis=1, keepdims=True), atol=1e-12)
    np.testing.assert_allclose(teacher.predict_proba(ROWS), softmax(raw, axis=1))
    labels = teacher.predict(ROWS)
    assert labels.tolist() == teacher.classes_[raw.argmax(axis=1)].tolist()
    assert teacher.score(ROWS, labels) == 1.0


def test_log_probabilities_are_logits():
    net = network(4, 3)
    logs = TorchTeacher(nn.Sequential(net, nn.LogSoftmax(dim=1)), range(3))
    np.testing.assert_allclose(
        logs.decision_function(ROWS),
        TorchTeacher(net, range(3)).decision_function(ROWS),
        atol=1e-6,
    )


def test_the_module_is_left_as_it_was():
    net = network(4, 3)
    net[1].eval()  # batch normalisation frozen by hand inside a training network
    modes = [part.training for part in net.modules()]
    before = {name: value.clone() for name, value in net.state_dict().items()}
    teacher = TorchTeacher(net, range(3))
    first, again = teacher.decision_function(ROWS), teacher.decision_function(ROWS)
    np.testing.assert_array_equal(first, again)
    assert [part.training for part in net.modules()] == modes
    for name, value in net.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    assert all(p.requires_grad and p.grad is None for p in net.parameters())


def test_a_module_that_works_in_place_does_not_change_the_rows():
    rows = ROWS.copy()
    net = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 3).double())
    TorchTeacher(net, range(3)).decision_function(rows)
    np.testing.assert_array_equal(rows, ROWS)


def test_threads_share_one_module():
    net = network(4, 3)
    teacher = TorchTeacher(net, range(3), batch_size=2)
    expected = teacher.decision_function(ROWS)
    with ThreadPoolExecutor(8) as pool:
        for actual in pool.map(teacher.decision_function, [ROWS] * 16):
            np.testing.assert_array_equal(actual, expected)
    assert net.training


@pytest.mark.parametrize("batch_size", [1, 5, 37, 1000])
def test_batches_do_not_matter(batch_size):
    teacher = TorchTeacher(network(4, 3), range(3))
    expected = teacher.decision_function(ROWS)
    teacher.set_params(batch_size=batch_size)
    np.testing.assert_allclose(teacher.decision_function(ROWS), expected, atol=1e-6)


def scale_images(images):
    return (images - 0.5) / 0.25


@pytest.mark.parametrize("preprocess", [scale_images, nn.BatchNorm2d(3, affine=False)])
def test_input_shape_and_preprocess(preprocess):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    teacher = TorchTeacher(net, range(3), preprocess=preprocess, input_shape=(3, 4, 4))
    X = np.random.default_rng(1).random((9, 48))
    images = torch.tensor(X).float().reshape(9, 3, 4, 4)
    ready = scale_images(images) if preprocess is scale_images else images / (1 + 1e-5) ** 0.5
    expected = net(ready).detach().double().numpy()
    expected -= expected.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(teacher.decision_function(X), expected, atol=1e-5)
    with pytest.raises(
        ValueError, match=r"X has 47 features, but input_shape=\(3, 4, 4\) needs 48"
    ):
        teacher.predict(X[:, 1:])


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(4000, 5)
        self.last = nn.Linear(5, 2)

    def forward(self, tokens):
        return self.last(self.embedding(tokens).mean(dim=1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_integers_reach_preprocess_exactly(dtype):
    tokens = np.random.default_rng(0).integers(3000, 4000, size=(6, 7))
    net = Tokens().to(dtype)
    expected = net(torch.tensor(tokens)).detach().double()
    actual = TorchTeacher(net, [0, 1], preprocess=torch.Tensor.long).decision_function(tokens)
    np.testing.assert_array_equal(actual, (expected[:, 1] - expected[:, 0]).numpy())


# As a scikit-learn estimator


def test_it_is_a_fitted_classifier():
    teacher = TorchTeacher(network(4, 3), range(3))
    check_is_fitted(teacher)
    assert is_classifier(teacher)
    before = copy.deepcopy(teacher.module.state_dict())
    assert teacher.fit(ROWS, np.zeros(37), sample_weight=np.ones(37)) is teacher
    for name, value in teacher.module.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_clones_share_the_module_and_nothing_else():
    teacher = TorchTeacher(network(4, 3), range(3), batch_size=8)
    twin = clone(teacher)
    assert twin is not teacher
    assert twin.module is teacher.module
    assert twin.get_params() == teacher.get_params()
    twin.set_params(batch_size=4, classes=[3, 4, 5])
    assert teacher.batch_size == 8
    assert set(twin.predict(ROWS)) <= {3, 4, 5}


def test_pickle():
    teacher = TorchTeacher(network(4, 3), range(3), preprocess=nn.LayerNorm(4))
    loaded = pickle.loads(pickle.dumps(teacher))
    assert loaded.module is not teacher.module
    assert loaded.module.training
    np.testing.assert_array_equal(loaded.decision_function(ROWS), teacher.decision_function(ROWS))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("device", ["auto", "cuda", "cpu"])
def test_gpu_agrees_with_cpu_and_its_pickle_holds_cpu_tensors(device):
    net = network(4, 3).double()
    expected = TorchTeacher(net, range(3), device="cpu").decision_function(ROWS)
    on_gpu = copy.deepcopy(net).cuda()
    teacher = TorchTeacher(on_gpu, range(3), device=device)
    np.testing.assert_allclose(teacher.decision_function(ROWS), expected, atol=1e-12)
    assert next(on_gpu.parameters()).is_cuda
    loaded = pickle.loads(pickle.dumps(teacher))
    assert not next(loaded.module.parameters()).is_cuda
    np.testing.assert_allclose(loaded.decision_function(ROWS), expected, atol=1e-12)


def test_tensors_with_array_api_dispatch():
    teacher = TorchTeacher(network(4, 3), range(3))
    with config_context(array_api_dispatch=True):
        for method in ("decision_function", "predict_proba", "predict"):
            actual = getattr(teacher, method)(torch.tensor(ROWS))
            assert isinstance(actual, torch.Tensor)
            assert not actual.is_inference()
            np.testing.assert_array_equal(actual.numpy(), getattr(teacher, method)(ROWS))


def test_frames_and_lists_of_rows():
    teacher = TorchTeacher(network(4, 3), range(3))
    expected = teacher.decision_function(ROWS)
    np.testing.assert_array_equal(teacher.decision_function(pd.DataFrame(ROWS)), expected)
    np.testing.assert_array_equal(teacher.decision_function(ROWS.tolist()), expected)


# As a teacher


@pytest.fixture(scope="module")
def iris():
    X, y = load_iris(return_X_y=True)
    return scale(X), y


def trained(X, y, n_outputs):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(X.shape[1], 20), nn.ReLU(), nn.Linear(20, n_outputs))
    rows, labels = torch.tensor(X).float(), torch.tensor(y)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(rows), labels).backward()
        optimizer.step()
    return net


def test_the_student_uses_it_as_it_is(iris):
    X, y = iris
    teacher = TorchTeacher(trained(X[::2], y[::2], 3), range(3))
    student = LinearizedKDStudent(teacher).fit(X[1::2], y[1::2])
    assert student.teacher_ is teacher
    np.testing.assert_allclose(
        student.teacher_logits_, teacher.decision_function(X[1::2]), rtol=1e-12
    )
    assert student.fit_report_.n_clipped_teacher_rows == 0
    assert student.score(X, y) > 0.9
    assert neg_transfer_risk_scorer(student, X, y) > -0.1
    frozen = LinearizedKDStudent(FrozenEstimator(teacher)).fit(X[1::2], y[1::2])
    np.testing.assert_array_equal(frozen.dual_coef_, student.dual_coef_)
    loaded = pickle.loads(pickle.dumps(student))
    np.testing.assert_array_equal(
        loaded.teacher_decision_function(X), student.teacher_decision_function(X)
    )


def test_searches_use_it_as_it_is(iris):
    X, y = iris
    teacher = TorchTeacher(trained(X[::2], y[::2], 3), range(3))
    folds = StratifiedKFold(3)
    grid = GridSearchCV(
        LinearizedKDStudent(teacher, temperature=1.0), {"soft_ratio": [0.5, 0.9]}, cv=folds
    )
    with parallel_config(backend="threading", n_jobs=2):
        grid.fit(X, y)
    assert grid.best_estimator_.teacher_.module is teacher.module
    search = LinearizedKDStudentCV(
        teacher, soft_ratios=[0.5, 0.9], temperatures=[1.0], cv=folds
    ).fit(X, y)
    np.testing.assert_allclose(
        search.cv_results_["mean_test_score"], grid.cv_results_["mean_test_score"], rtol=1e-12
    )
    assert search.teacher_ is teacher


def test_it_ends_a_pipeline(iris):
    X, y = iris
    teacher = TorchTeacher(trained(X, y, 3), range(3))
    pipeline = make_pipeline(FunctionTransformer(), teacher)
    student = LinearizedKDStudent(pipeline, cv=3).fit(X, y)
    np.testing.assert_allclose(
        student.teacher_logits_, teacher.decision_function(X), rtol=1e-6, atol=1e-6
    )


# Errors


class Returns(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, X):
        return self.function(X)


def nan_in_row_30(X):
    return torch.where(torch.arange(len(X), device=X.device)[:, None] == 30, torch.nan, X[:, :3])


BAD_TEACHERS = {
    "no module": ((max, [0, 1]), ValueError, "'module' parameter of TorchTeacher"),
    "one class": ((network(4, 1), [0]), ValueError, r"classes=\[0\] must hold the labels"),
    "class twice": ((network(4, 3), [0, 1, 1]), ValueError, "two or more and each once"),
    "too few outputs": ((network(4, 1), [0, 1, 2]), ValueError, "1 output per row"),
    "too many outputs": ((network(4, 3), [0, 1]), ValueError, r"3 outputs per row.* names 2"),
    "tuple": ((Returns(lambda X: (X, X)), range(4)), TypeError, "returned a tuple, but one tensor"),
    "dict": ((Returns(lambda X: {"logits": X}), range(4)), TypeError, "returned a dict"),
    "classes, not logits": (
        (Returns(lambda X: X.argmax(dim=1)), [0, 1]),
        ValueError,
        r"shape \(37,\) and dtype torch.int64",
    ),
    "image": ((Returns(lambda X: X[:, :, None]), range(4)), ValueError, r"shape \(37, 4, 1\)"),
    "other rows": ((Returns(lambda X: X[:5]), range(4)), ValueError, "5 rows for a batch of 37"),
    "NaN": ((Returns(nan_in_row_30), range(3)), ValueError, r"on 1 of 37 rows.* row 30: \[nan"),
    "probabilities": (
        (nn.Sequential(network(4, 3), nn.Softmax(dim=1)), range(3)),
        ValueError,
        "leave out the last softmax",
    ),
    "one sigmoid": (
        (nn.Sequential(network(4, 1), nn.Sigmoid()), range(2)),
        ValueError,
        "leave out the last softmax or sigmoid",
    ),
    "a sigmoid per class": (
        (nn.Sequential(network(4, 3), nn.Sigmoid()), range(3)),
        ValueError,
        "leave out the last softmax or sigmoid",
    ),
    "width": ((network(5, 3), range(3)), ValueError, r"37 rows of shape \(4,\): .*input_shape"),
}


@pytest.mark.parametrize("case", BAD_TEACHERS)
def test_errors(case):
    arguments, error, message = BAD_TEACHERS[case]
    with pytest.raises(error, match=message):
        TorchTeacher(*arguments).decision_function(ROWS)


def test_errors_of_rows_and_classes(iris):
    X, y = iris
    teacher = TorchTeacher(network(4, 3), range(3))
    with pytest.raises(ValueError, match="NaN"):
        teacher.predict(np.full((2, 4), np.nan))
    with pytest.raises(ValueError, match=r"y holds the class 2, .*\[0, 1\]"):
        LinearizedKDStudent(TorchTeacher(network(4, 2), range(2))).fit(X, y)


def test_a_single_row_of_logits_may_sum_to_one():
    teacher = TorchTeacher(Returns(lambda X: X), [0, 1])
    assert teacher.predict([[0.25, 0.75]]) == [1]


def test_later_batches_are_checked_too():
    teacher = TorchTeacher(Returns(lambda X: X / X[:, :1]), range(4), batch_size=10)
    rows = ROWS.copy()
    rows[22, 0] = 0.0
    with pytest.raises(ValueError, match=r"on 1 of 37 rows.* row 22"):
        teacher.predict(rows)


# skorch


def skorch_classifier(**parameters):
    skorch = pytest.importorskip("skorch")
    settings = {"max_epochs": 40, "lr": 0.2, "verbose": 0, "train_split": None}
    return skorch.NeuralNetClassifier(**{**settings, **parameters})


def single(X):
    return np.asarray(X, dtype=np.float32)


def iris_network(softmax=False):
    net = nn.Sequential(nn.Linear(4, 20), nn.ReLU(), nn.Linear(20, 3))
    return nn.Sequential(net, nn.Softmax(dim=1)) if softmax else net


@pytest.fixture
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.mark.usefixtures("seeded")
@pytest.mark.parametrize("softmax_outputs", [True, False], ids=["probabilities", "logits"])
def test_skorch_classifiers_are_cross_fitted(iris, softmax_outputs):
    X, y = iris
    loss = nn.NLLLoss if softmax_outputs else nn.CrossEntropyLoss
    net = skorch_classifier(module=iris_network, module__softmax=softmax_outputs, criterion=loss)
    teacher = make_pipeline(StandardScaler(), FunctionTransformer(single), net)
    torch.manual_seed(1)
    student = LinearizedKDStudent(teacher, cv=3).fit(X, y)
    torch.manual_seed(1)
    logs = np.empty((150, 3))
    for train, test in StratifiedKFold(3).split(X, y):
        fitted = clone(teacher).fit(X[train], y[train])
        logs[test] = np.log(np.maximum(fitted.predict_proba(X[test]), 1 / 100))
        fitted.predict(X[test])  # draws from torch's generator too
    np.testing.assert_allclose(
        student.teacher_logits_, logs - logs.mean(axis=1, keepdims=True), rtol=1e-5, atol=1e-5
    )
    assert student.score(X, y) > 0.9
    assert neg_transfer_risk_scorer(student, X, y) > -0.15
    loaded = pickle.loads(pickle.dumps(student))
    np.testing.assert_array_equal(loaded.predict(X), student.predict(X))


@pytest.mark.usefixtures("seeded")
def test_a_fitted_skorch_classifier_as_a_torch_teacher(iris):
    X, y = iris
    net = skorch_classifier(module=iris_network, criterion=nn.CrossEntropyLoss)
    net.fit(single(X[::2]), y[::2])
    frozen = LinearizedKDStudent(FrozenEstimator(make_pipeline(FunctionTransformer(single), net)))
    unwrapped = LinearizedKDStudent(TorchTeacher(net.module_, net.classes_))
    np.testing.assert_allclose(
        unwrapped.fit(X[1::2], y[1::2]).teacher_logits_,
        frozen.fit(X[1::2], y[1::2]).teacher_logits_,
        atol=1e-4,
    )


@pytest.mark.usefixtures("seeded")
def test_a_binary_skorch_classifier_takes_its_labels_as_float32():
    skorch = pytest.importorskip("skorch")
    X, y = load_breast_cancer(return_X_y=True)
    X, y = single(scale(X)[:200]), single(y[:200])
    net = skorch.NeuralNetBinaryClassifier(nn.Linear(30, 1), max_epochs=20, lr=0.1, verbose=0)
    student = LinearizedKDStudent(net, cv=3).fit(X, y)
    assert student.score(X, y) > 0.9
