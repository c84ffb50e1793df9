"""Every entry point of the package, as functions of a device that return what they compute."""

import pickle
import tempfile
from pathlib import Path

import numpy as np
import sklearn
import torch
from process_state import deterministic
from sklearn.frozen import FrozenEstimator
from sklearn.gaussian_process.kernels import RBF
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from torch import nn

from sklearn_kd import (
    DistillationPlan,
    LinearizedKDStudent,
    LinearizedKDStudentCV,
    NTKTeacher,
    StudentPipeline,
    TorchStudent,
    TorchTeacher,
    distillation,
    metrics,
)
from sklearn_kd.kernels import NTK, EmpiricalNTK
from sklearn_kd.linalg import TangentFrame
from sklearn_kd.paper import paper_quantities
from sklearn_kd.rows import merge_rows
from sklearn_kd.solvers import PCG, Nystrom, Refinement
from sklearn_kd.training._gradient_flow import gradient_flow

N, D = 240, 6
rng = np.random.default_rng(0)
X = rng.standard_normal((N, D))
X_NEW = rng.standard_normal((70, D)) * 1.1
Z = X @ rng.standard_normal(D) + rng.standard_normal(N) / 3
Y = (Z > 0).astype(int)
Z3 = X @ rng.standard_normal((D, 3))
Z3 -= Z3.mean(axis=1, keepdims=True)
Y3 = Z3.argmax(axis=1)
BOTH = ((Y, Z), (Y3, Z3))
WEIGHTS = rng.integers(0, 3, N + 40).astype(float)
X_COPIES, Z_COPIES = np.concatenate([X, X[:40]]), np.concatenate([Z, Z[:40] + 0.1])
Y_COPIES = np.concatenate([Y, 1 - Y[:40]])

FROZEN = FrozenEstimator(LogisticRegression().fit(X_NEW, X_NEW[:, 0] > 0))

CASES = {}


def cases(**options):
    """Enter a function, once for each set of options."""

    def enter(function):
        for name, keywords in (options or {"": {}}).items():
            label = f"{function.__name__} {name}".strip().replace("_", " ")
            CASES[label] = lambda device, f=function, k=keywords: f(device, **k)
        return function

    return enter


def on(device, array, dtype=torch.float64):
    return torch.as_tensor(array, dtype=dtype, device=device)


def predictions(estimator, rows=X_NEW):
    return [getattr(estimator, f)(rows) for f in ("decision_function", "predict_proba", "predict")]


def flat(found):
    """Return the numbers that a case returned, as arrays on the host."""
    if isinstance(found, (list, tuple)):
        return [array for part in found for array in flat(part)]
    return [found.detach().cpu().numpy() if isinstance(found, torch.Tensor) else np.asarray(found)]


# Kernels and frames.


@cases(
    relu={},
    leaky_relu={"activation": "leaky_relu"},
    erf={"activation": "erf"},
    gelu={"activation": "gelu"},
    nngp={"kind": "nngp"},
    no_bias={"bias_std": 0.0},
    depth_10={"depth": 10},
)
def kernel(device, **options):
    function, found = NTK(**options).to_torch(), []
    for dtype in (torch.float64, torch.float32):
        x, new = on(device, X, dtype), on(device, X_NEW, dtype)
        near = x + 1e-6 * x.flip(0)
        found += [function.block(new, x), function.block(x, near), function.gram(x)]
        found += [function.diag(x), function.gram(x, symmetrize=False)]
        found += [function.matmat(new, x, x[:, :2])]
    return [*found, function.gradient(on(device, X))]


@cases(plain={}, ridge={"ridge": 0.1}, weights={"ridge": 0.1, "weighted": True})
def frame(device, ridge=0.0, weighted=False):
    x, new, z = on(device, X), on(device, X_NEW), on(device, Z3)
    weights = on(device, WEIGHTS[:N] + 1) if weighted else None
    made = TangentFrame(NTK().to_torch(), x, ridge=ridge, weights=weights)
    a = made.solve(z)
    return [
        made.lower.tril(),
        made.coordinates(z),
        a,
        *made.features(new),
        made.loo(z),
        made.prefix_predictions(new, z, [10, 100, 240]),
        made.prefix_norms(z),
        made.one_step_errors(z),
        made.weight_change_norm(z, a),
        made.rcond,
    ]


@cases()
def frame_with_jitter(device):
    x = on(device, np.concatenate([X, X[:5] * (1 + 1e-15)]))
    made = TangentFrame(NTK(depth=1, activation="erf").to_torch(), x * 1e-3)
    return made.jitter, made.rcond


@cases()
def copies(device):
    merged = merge_rows(on(device, X_COPIES))
    return [merged.first, merged.group, merged.total(on(device, WEIGHTS))]


@cases()
def flow(device):
    x = on(device, X)
    gram = NTK().to_torch().gram(x)
    shares = torch.full_like(x[:, 0], 1 / N)
    return gradient_flow(gram, on(device, Y), shares, stopping_times=[1.0, 30.0])[0]


# Students, teachers and searches.


SOLVERS = {
    "cholesky": {"solver": "cholesky"},
    "refinement": {"solver": Refinement()},
    "pcg": {"solver": PCG(random_state=0)},
    "pcg_ridge": {"solver": PCG(random_state=0), "ridge": 0.1},
    "pcg_float32": {"solver": PCG(random_state=0), "dtype": "float32", "ridge": 0.1},
    "nystrom": {"solver": Nystrom(60, random_state=0)},
    "float32": {"dtype": "float32", "ridge": 0.1},
}


@cases(**SOLVERS, stopped={"stopping_time": [1.0, 30.0]})
def student(device, **options):
    found = []
    for y, z in BOTH:
        fitted = LinearizedKDStudent(device=device, **options).fit(X, y, teacher_logits=z)
        found += [*predictions(fitted), fitted.weight_change_norm_, fitted.score(X_NEW, y[:70])]
    return found


@cases(**SOLVERS)
def student_of_copies(device, **options):
    made = LinearizedKDStudent(device=device, **options)
    return predictions(made.fit(X_COPIES, Y_COPIES, WEIGHTS, teacher_logits=Z_COPIES))


@cases(**SOLVERS)
def student_of_tensors(device, **options):
    """Rows that are on the device already, by scikit-learn's array API."""
    with sklearn.config_context(array_api_dispatch=True):
        rows, new, y, z = (on(device, array) for array in (X, X_NEW, Y, Z))
        fitted = LinearizedKDStudent(device=device, **options).fit(rows, y, teacher_logits=z)
        found = predictions(fitted, new)
        copied = pickle.loads(pickle.dumps(fitted))
        found += predictions(copied, new)
        assert all(array.device == rows.device for array in found)
        return found


@cases()
def student_without_labels(device):
    y = np.where(np.arange(N) % 3 == 0, -1, Y3)
    return predictions(LinearizedKDStudent(device=device).fit(X, y, teacher_logits=Z3))


@cases(
    ntk={},
    sklearn={"teacher": LogisticRegression()},
    two={"teacher": [LogisticRegression(), LogisticRegression(C=0.1)]},
)
def student_of_teacher(device, **options):
    fitted = LinearizedKDStudent(device=device, **options).fit(X, Y3)
    return [*predictions(fitted), fitted.effective_decision_function(X_NEW, Y3[:70])]


@cases()
def student_of_an_array_kernel(device):
    made = LinearizedKDStudent(kernel=RBF(), device=device, ridge=0.1)
    return predictions(made.fit(X, Y, teacher_logits=Z))


@cases()
def pipeline(device):
    made = StudentPipeline(
        sklearn.preprocessing.StandardScaler(), LinearizedKDStudent(device=device)
    )
    return predictions(made.fit(X, Y, teacher_logits=Z))


@cases(
    log_loss={"stopping_time": [1.0, 10.0]},
    ridge={"ridge": 0.1},
    squared={"loss": "squared_error"},
    squared_flow={"loss": "squared_error", "stopping_time": 5.0},
)
def teacher(device, **options):
    found = []
    for y in (Y, Y3):
        fitted = NTKTeacher(device=device, **options).fit(X, y)
        found += [*predictions(fitted), *fitted.staged_decision_function(X_NEW)]
    return [*found, fitted.weight_change_norm_]


@cases(
    loo={},
    folds={"cv": 4},
    factors={"cv": 4, "ridges": [0.0, 0.1], "refit": False},
    pcg={"cv": 3, "solver": PCG(random_state=0)},
    nystrom={"solver": Nystrom(60, random_state=0)},
    kernels={"cv": 3, "kernel": [NTK(1), NTK(2)]},
    scores={"scoring": "neg_log_loss"},
    flows={"cv": 3, "stopping_times": [1.0, 10.0]},
)
def search(device, **options):
    grid = {"soft_ratios": [0.5, 1.0], "temperatures": [1.0, 2.0]}
    found = []
    for y, z in BOTH:
        made = LinearizedKDStudentCV(device=device, **grid, **options).fit(X, y, teacher_logits=z)
        found.append(made.cv_results_["mean_test_score"])
        if made.refit:
            found += predictions(made)
    return found


@cases()
def search_of_copies(device):
    made = LinearizedKDStudentCV(device=device, cv=3, ridges=[0.1, 1.0], soft_ratios=[0.5])
    made.fit(X_COPIES, Y_COPIES, teacher_logits=Z_COPIES)
    return made.cv_results_["mean_test_score"]


@cases()
def search_by_the_papers_scores(device):
    found = []
    for scorer in (metrics.neg_data_inefficiency_scorer, metrics.neg_transfer_risk_scorer):
        for cv in (None, 3):
            made = LinearizedKDStudentCV(device=device, scoring=scorer, cv=cv, soft_ratios=[0.5])
            made.fit(X, Y, teacher_logits=Z)
            found.append(made.cv_results_["mean_test_score"])
    return found


@cases()
def grid_search(device):
    scoring = {
        "risk": metrics.neg_transfer_risk_scorer,
        "rows": metrics.neg_data_inefficiency_scorer,
    }
    made = GridSearchCV(
        LinearizedKDStudent(LogisticRegression(), device=device),
        {"temperature": [1.0, 2.0, 4.0]},
        scoring=scoring,
        refit="risk",
        cv=3,
    ).fit(X, Y)
    return made.cv_results_["mean_test_risk"], made.cv_results_["mean_test_rows"]


@cases(
    plain={},
    permuted={"n_permutations": 3, "random_state": 0},
    grid={"param_grid": {"temperature": [1.0, 3.0]}, "sizes": [10, 100, 200]},
)
def prefix_path(device, **options):
    found = []
    for y, z in BOTH:
        fitted = LinearizedKDStudent(device=device, ridge=0.01).fit(X, y, teacher_logits=z)
        path = fitted.prefix_path(X_NEW, teacher_logits=z[:70], y=y[:70], **options)
        found += [value for value in path.values() if not isinstance(value, list)]
    return found


@cases(ntk={}, network={"network": True})
def plan(device, network=False):
    student = NTK()
    if network:
        student = TorchStudent(
            lambda: nn.Sequential(nn.Linear(D, 8), nn.ReLU(), nn.Linear(8, 1)),
            device=device,
            max_epochs=3,
            lr=0.1,
            random_state=0,
        )
    made = DistillationPlan(
        student,
        FROZEN,
        soft_ratios=(0.5, 1.0),
        temperatures=(1.0, 4.0),
        device=device,
        random_state=0,
    ).fit(X, Y)
    return made.search_.cv_results_["mean_test_score"]


# The paper's quantities.


@cases()
def metrics_of_tensors(device):
    z, y, z3, y3 = (on(device, array) for array in (Z, Y, Z3, Y3))
    made = TangentFrame(NTK().to_torch(), on(device, X))
    z_eff = distillation.effective_logits(z, y, soft_ratio=0.5, temperature=2.0)
    squared = {"soft_ratio": 0.5, "temperature": 2.0, "temperature_scaling": "squared"}
    z3_eff = distillation.effective_logits(z3, y3, **squared)
    norms, (_, v) = made.prefix_norms(z_eff), made.features(on(device, X_NEW))
    angles = metrics.feature_angles(z_eff, made.kernel.diag(made.X), norms[-1])
    effect = metrics.hard_label_effect(made, z, y, temperature=2.0, random_state=0)
    turns = metrics.weight_change_angles(made, z_eff)
    return [
        z_eff,
        z3_eff,
        metrics.transfer_risk(z, z_eff),
        metrics.transfer_risk(z3, z3_eff),
        metrics.data_inefficiency(norms[None]),
        metrics.data_inefficiency(norms[None], window=2.0),
        angles,
        metrics.accumulative_angle_distribution(angles, on(device, [0.1, 0.5])),
        metrics.transfer_risk_bound(angles, on(device, 0.3)),
        metrics.phuong_lampert_bound(angles, 100),
        metrics.power_function_bound(z_eff[:70], v, 2 * norms[-1], norms[-1]),
        metrics.binomial_upper_bound(on(device, 3), on(device, 100)),
        *[value for value in turns.values() if isinstance(value, torch.Tensor)],
        *[value for value in effect.values() if isinstance(value, (float, torch.Tensor))],
    ]


@cases()
def diagnosis(device):
    grid = {"soft_ratios": [0.5, 1.0], "temperatures": [1.0, 4.0]}
    return [
        str(distillation.diagnose_teacher(on(device, z), on(device, y), **grid)) for y, z in BOTH
    ]


@cases()
def loss_of_tensors(device):
    loss = distillation.DistillationLoss(0.5, 2.0)
    z = on(device, Z3).requires_grad_()
    value = loss(z, on(device, Z3[::-1].copy()), on(device, Y3, torch.int64))
    value.backward()
    return [value, z.grad]


@cases()
def quantities(device):
    fitted = LinearizedKDStudent(FROZEN, device=device).fit(X, Y)
    oracle = LinearizedKDStudent(FROZEN, device=device)
    oracle.fit(np.concatenate([X, X_NEW]), np.concatenate([Y, Y[:70]]))
    found = paper_quantities(fitted, oracle, X_NEW, Y[:70])
    return [v for v in found.values() if isinstance(v, (float, np.ndarray))]


# Streams.


@cases(
    memmap={"source": "memmap"},
    folder={"source": "folder"},
    weights={"source": "memmap", "weighted": True},
)
def stream(device, source, weighted=False):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in range(3):
            np.save(folder / f"{part}.npy", X[part * 80 : (part + 1) * 80])
        rows = name
        if source == "memmap":
            np.save(folder / "all.bin.npy", X)
            rows = np.load(folder / "all.bin.npy", mmap_mode="r")
        weights = WEIGHTS[:N] if weighted else None
        options = {"solver": Nystrom(60, random_state=0), "device": device}
        fitted = LinearizedKDStudent(**options).fit(rows, Y, weights, teacher_logits=Z)
        made = LinearizedKDStudentCV(soft_ratios=[0.5], **options).fit(rows, Y, teacher_logits=Z)
        return [*predictions(fitted), fitted.decision_function(rows), *predictions(made)]


@cases()
def checkpoint(device):
    with tempfile.TemporaryDirectory() as name:
        solver = Nystrom(60, random_state=0, checkpoint=Path(name) / "pass.npz")
        fitted = LinearizedKDStudent(solver=solver, device=device).fit(X, Y, teacher_logits=Z)
        return predictions(fitted)


# Networks.


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(D, 2, batch_first=True)
        self.head = nn.Linear(D, 3)

    def forward(self, x):
        x = x[:, None, :].expand(-1, 3, -1)
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(dim=1))


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.layer = kind(2, 4, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.layer(x.unflatten(1, (3, 2)))[0][:, -1])


class WithBuffer(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.tensor([1.0, 2.0, 3.0]))
        self.layer = nn.Linear(D, 3)

    def forward(self, x):
        return self.layer(x) * self.scale


def convolution():
    layers = [nn.Conv2d(1, 4, 2), nn.BatchNorm2d(4), nn.GELU(), nn.Flatten(), nn.Linear(8, 3)]
    return nn.Sequential(*layers).eval()


NETWORKS = {
    "mlp": lambda: nn.Sequential(nn.Linear(D, 8), nn.Tanh(), nn.Linear(8, 3)),
    "convolution": convolution,
    "attention": lambda: Attention().eval(),
    "gru": lambda: Recurrent(nn.GRU).eval(),
    "lstm": lambda: Recurrent(nn.LSTM).eval(),
    "rnn": lambda: Recurrent(nn.RNN).eval(),
    "buffer": WithBuffer,
}
NAMES = {name: {"name": name} for name in NETWORKS}


def network(name):
    torch.manual_seed(0)
    return NETWORKS[name]().double(), (1, 2, 3) if name == "convolution" else None


@cases(**NAMES)
def empirical_kernel(device, name):
    module, shape = network(name)
    few = X[:30]
    ntk = EmpiricalNTK(module, input_shape=shape, device=device)
    full = EmpiricalNTK(module, input_shape=shape, device=device, output="full")
    function, x = ntk.to_torch(), on(device, few)
    return [
        ntk(few),
        ntk(few, X_NEW[:9]),
        ntk.diag(few),
        ntk.initial_outputs(few),
        full(few),
        ntk.matmat(X_NEW[:9], few, Z[:30]),
        function.gram(x),
        function.block(x, x[:9]),
        function.matmat(x[:9], x, x[:, :1]),
    ]


@cases(
    zero={"init": "zero"},
    network={"init": "network"},
    nystrom={"solver": Nystrom(40, random_state=0), "init": "network"},
    pcg={"solver": PCG(random_state=0), "ridge": 1.0},
)
def student_of_a_network(device, **options):
    kernel = EmpiricalNTK(network("mlp")[0])
    made = LinearizedKDStudent(kernel=kernel, device=device, **{"ridge": 0.1} | options)
    return predictions(made.fit(X[:90], Y3[:90], teacher_logits=Z3[:90]))


@cases(**NAMES)
def torch_teacher(device, name):
    module, shape = network(name)
    module = nn.Sequential(module, nn.LayerNorm(3, dtype=torch.float64))  # outputs beyond [0, 1]
    found = []
    for where in ("cpu", device):
        made = TorchTeacher(module.to(where), [0, 1, 2], input_shape=shape, device=device)
        found += predictions(made)
        found.append(pickle.loads(pickle.dumps(made)).decision_function(X_NEW))
    fitted = LinearizedKDStudent(made, device=device).fit(X, Y3)
    return [*found, fitted.decision_function(X_NEW)]


@cases()
def torch_student(device):
    made = TorchStudent(
        lambda: network("mlp")[0].float(),
        device=device,
        max_epochs=3,
        lr=0.1,
        random_state=0,
    )
    return predictions(made.fit(X, Y3, teacher_logits=Z3))


@cases()
def search_for_a_network(device):
    made = TorchStudent(
        lambda: nn.Sequential(nn.Linear(D, 8), nn.Tanh(), nn.Linear(8, 1)),
        FROZEN,
        device=device,
        max_epochs=3,
        lr=0.1,
        random_state=0,
    )
    options = {"soft_ratios": [0.5, 1.0], "temperatures": [2.0], "cv": 3, "device": device}
    chosen = LinearizedKDStudentCV.for_network(made, X, Y, **options)
    return chosen.fit(X, Y).cv_results_["mean_test_score"]


# Settings.


@cases(**SOLVERS)
def deterministic_student(device, **options):
    with deterministic():
        made = LinearizedKDStudent(device=device, **options)
        return predictions(made.fit(X, Y, teacher_logits=Z))


@cases()
def deterministic_path(device):
    with deterministic():
        made = LinearizedKDStudent(device=device).fit(X, Y, teacher_logits=Z)
        return made.prefix_path(sizes=[10, 100]).weight_change_norm
