"""Arguments of another kind than expected: every error names the value and the remedy."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, KFold, LeaveOneGroupOut, StratifiedGroupKFold

from sklearn_kd import LinearizedKDStudent, LinearizedKDStudentCV, NTKTeacher, TorchTeacher
from sklearn_kd.distillation import DistillationLoss, diagnose_teacher, effective_logits
from sklearn_kd.inspection import SelectionDisplay
from sklearn_kd.kernels import NTK, EmpiricalNTK
from sklearn_kd.linalg import TangentFrame
from sklearn_kd.metrics import hard_label_effect, transfer_risk

X = np.random.default_rng(0).normal(size=(20, 4))
Y, Z = (X[:, 0] > 0).astype(int), 2 * X[:, 0]
STUDENTS = [LinearizedKDStudent, LinearizedKDStudentCV]
KERNEL = r"'?kernel.*NTK\(\).*torch module EmpiricalNTK\(module\).*callable K\(X, Y\)"


@pytest.mark.parametrize("model", STUDENTS)
@pytest.mark.parametrize("teacher", [torch.nn.Linear(4, 1), LogisticRegression, "ntk"], ids=str)
def test_what_a_teacher_is(model, teacher):
    with pytest.raises(TypeError, match=r"'teacher' .*torch module TorchTeacher\(module, classes"):
        model(teacher).fit(X, Y)


@pytest.mark.parametrize(
    "kernel", [torch.nn.Linear(4, 1), "ntk", "precomputed", NTK, np.eye(3)], ids=repr
)
def test_what_a_kernel_is(kernel):
    for model in [*STUDENTS, NTKTeacher]:
        with pytest.raises(TypeError, match=f"(?s){KERNEL}"):
            model(kernel=kernel).fit(X, Y)
    with pytest.raises(TypeError, match=f"(?s){KERNEL}"):
        LinearizedKDStudentCV(kernel=[NTK(), kernel]).fit(X, Y)


@pytest.mark.parametrize("model", [*STUDENTS, NTKTeacher])
def test_gpu_is_cuda(model):
    with pytest.raises(ValueError, match=r"device='gpu' is not available.*GPUs are 'cuda'"):
        model(device="gpu").fit(X, Y)


@pytest.mark.parametrize("device", ["GPU:0", "CUDA", "Cuda:1"])
def test_other_words_for_cuda(device):
    with pytest.raises(ValueError, match="GPUs are 'cuda'"):
        NTKTeacher(device=device).fit(X, Y)


@pytest.mark.parametrize("model", STUDENTS)
def test_groups_given_for_folds(model):
    groups = np.repeat(np.arange(5), 4)
    with pytest.raises(ValueError, match=r"\(train, test\).*GroupKFold\(\)\.split"):
        model(LogisticRegression(), cv=groups).fit(X, Y)
    splitters = [GroupKFold(2), LeaveOneGroupOut(), StratifiedGroupKFold(2)]
    for splitter in splitters:
        with pytest.raises(ValueError, match=r"needs groups.*cv=list\(splitter"):
            model(LogisticRegression(), cv=splitter).fit(X, Y)
    folds = list(GroupKFold(2).split(X, Y, groups))
    assert model(cv=folds).fit(X, Y, teacher_logits=Z).score(X, Y) > 0.5


def test_a_path_where_rows_are_needed():
    with pytest.raises(ValueError, match=r"X='rows\.csv' is a path.*pandas\.read_csv.*nystrom"):
        LinearizedKDStudent().fit("rows.csv", Y)


def test_a_display_of_what_is_no_search():
    with pytest.raises(TypeError, match=r"LogisticRegression has no cv_results_; give a fitted"):
        SelectionDisplay.from_estimator(LogisticRegression().fit(X, Y))
    for search in (X, LinearizedKDStudentCV):
        with pytest.raises(TypeError, match=r"search is a (ndarray|type|ABCMeta); give a fitted"):
            SelectionDisplay.from_estimator(search)


def test_swapped_arguments_of_the_loss():
    z, y = torch.from_numpy(Z), torch.from_numpy(Y)
    for arguments, name in [((y, z, y), "student"), ((z, y, z), "teacher"), ((Z, Z, Y), "student")]:
        with pytest.raises(TypeError, match=rf"{name}_logits must be a tensor of floats.*order is"):
            DistillationLoss()(*arguments)


@pytest.mark.parametrize("model", STUDENTS)
def test_a_splitter_is_an_object(model):
    with pytest.raises(ValueError, match="cv=KFold is a class; pass an instance"):
        model(LogisticRegression(), cv=KFold).fit(X, Y)


def test_a_module_that_takes_no_flat_rows():
    module = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 2), torch.nn.Flatten())
    message = r"rows of 4 features, .* shape \(2, 4\).*input_shape=\(1, 28, 28\)"
    with pytest.raises(ValueError, match=message):
        LinearizedKDStudent(kernel=EmpiricalNTK(module)).fit(X, Y, teacher_logits=Z)
    images = X.reshape(20, 1, 2, 2)
    for kernel in (EmpiricalNTK(module, input_shape=(1, 2, 2)), NTK()):
        with pytest.raises(ValueError, match=r"X has shape \(20, 1, 2, 2\).*X\.reshape\(len\(X\)"):
            kernel(images)
    with pytest.raises(ValueError, match=r"X\.reshape\(len\(X\), -1\)"):
        TorchTeacher(module, [0, 1], input_shape=(1, 2, 2)).predict(images)


def test_a_frame_takes_tensors():
    frame = LinearizedKDStudent().fit(X, Y, teacher_logits=Z).tangent_frame()
    rows, targets = torch.from_numpy(X), torch.from_numpy(Z)
    for method in (frame.features, lambda X: frame.prefix_predictions(X, targets)):
        with pytest.raises(TypeError, match=r"X is a ndarray.*torch\.as_tensor\(X\)"):
            method(X)
        with pytest.raises(TypeError, match=r"X is of torch\.float32 .*X\.to\(frame\.X\)"):
            method(rows.float())
        with pytest.raises(ValueError, match=r"X has shape \(20, 3\).*have 4 features"):
            method(rows[:, :3])
    methods = (frame.coordinates, frame.solve, frame.loo, frame.prefix_norms, frame.one_step_errors)
    for method in (*methods, lambda targets: frame.prefix_predictions(rows, targets)):
        with pytest.raises(TypeError, match=r"targets is a ndarray.*torch\.as_tensor\(targets\)"):
            method(Z)
        with pytest.raises(ValueError, match=r"targets has shape \(3,\).*frame has 20 rows"):
            method(targets[:3])
    with pytest.raises(TypeError, match=r"kernel=NTK.*kernel\.to_torch\(\).*tangent_frame\(\)"):
        TangentFrame(NTK(), rows)
    with pytest.raises(TypeError, match="X is a ndarray"):
        TangentFrame(NTK().to_torch(), X)


@pytest.mark.parametrize(
    "function",
    [
        lambda z, y: effective_logits(z, y, soft_ratio=0.5, temperature=2.0),
        lambda z, y: diagnose_teacher(z, y, soft_ratios=[0.5], temperatures=[2.0]),
        lambda z, y: hard_label_effect(
            LinearizedKDStudent().fit(X, Y, teacher_logits=Z).tangent_frame(), z, y, temperature=2.0
        ),
    ],
    ids=["effective_logits", "diagnose_teacher", "hard_label_effect"],
)
def test_labels_that_are_strings_and_swapped_arguments(function):
    for labels in (np.where(Y, "a", "b"), np.where(Y, "a", "b").astype(object)):
        with pytest.raises(ValueError, match=r"y holds .*numpy\.unique\(y, return_inverse=True\)"):
            function(Z, labels)
    with pytest.raises(ValueError, match=r"y must .*teacher_logits|labels.*pass them as y"):
        function(Y, Z)
    with pytest.raises(TypeError, match=r"teacher_logits must be .*LogisticRegression.*order"):
        function(LogisticRegression(), Y)


def test_metrics_of_an_estimator():
    with pytest.raises(TypeError, match=r"student_logits must .*LogisticRegression.*order"):
        transfer_risk(Z, LogisticRegression())
