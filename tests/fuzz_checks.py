"""The checks of the fuzz tests: each draws one case, runs it and compares it with an oracle.

Where a problem is so ill-conditioned that no digits are determined, invariants take the oracle's
place: finite values, the backward error of the solve, probabilities that sum to one.
"""

import pickle

import fuzz_cases as fuzz
import hypothesis.strategies as st
import mpmath
import numpy as np
import oracles
import scipy.special
import torch
from sklearn.frozen import FrozenEstimator
from sklearn.tree import DecisionTreeClassifier

from sklearn_kd import LinearizedKDStudent, NTKTeacher
from sklearn_kd.distillation import (
    correction_logits,
    correction_margin,
    diagnose_teacher,
    effective_logits,
    equivalent_soft_ratio,
)
from sklearn_kd.kernels._array_kernel import as_kernel_function
from sklearn_kd.linalg import TangentFrame
from sklearn_kd.linalg._held_out import StudentInFrame, block_held_out, resolves_blocks
from sklearn_kd.metrics import (
    binomial_upper_bound,
    data_inefficiency,
    hard_label_effect,
    neg_data_inefficiency_scorer,
    neg_transfer_risk_scorer,
    phuong_lampert_bound,
    power_function_bound,
    weight_change_angles,
)

EPS = np.finfo(float).eps
UNDERFLOW = 5e-324  # the smallest float64


def resolution(estimator):
    return np.finfo(np.float32 if estimator.dtype == "float32" else np.float64).eps


def condition(A):
    """Return the condition number of a symmetric matrix, inf where it has none."""
    scale = np.abs(A).max()
    if not (np.isfinite(A).all() and scale > 0):
        return np.inf
    values = np.linalg.eigvalsh(A / scale)
    return values[-1] / values[0] if values[0] > 0 else np.inf


def is_decided(A, eps=EPS):
    """Whether double-precision solves with A leave at least six digits."""
    return condition(A) * len(A) * eps < 1e-6


def solved(A, b):
    scale = np.abs(A).max()
    return np.linalg.solve(A / scale, b) / scale


def norm(x):
    """The Frobenius norm, also where squares leave the range of numbers."""
    scale = np.abs(x).max() or 1.0
    return scale * np.linalg.norm(x / scale)


def dense_matrix(estimator, weights, ridge):
    """Return Θ + α W⁻¹ + jitter, with Θ in the estimator's precision."""
    X = torch.as_tensor(estimator.X_fit_)
    gram = as_kernel_function(estimator.kernel_).gram(X).double().numpy()
    return gram + np.diag(ridge / weights) + estimator.jitter_ * np.eye(len(X))


# Targets


def check_effective_logits(draw):
    z_t = draw(st.lists(st.floats(-700, 700, allow_subnormal=False), min_size=1, max_size=3))
    y = draw(
        st.lists(st.sampled_from([0.0, 1.0, 0.5, 1e-9, 0.7]), min_size=len(z_t), max_size=len(z_t))
    )
    recipe = {"soft_ratio": draw(fuzz.SOFT_RATIOS), "temperature": draw(fuzz.TEMPERATURES)}
    actual = effective_logits(z_t, y, **recipe)
    for z, label, value in zip(z_t, y, actual, strict=True):
        if recipe["soft_ratio"] == 1:
            assert value == z
            continue
        if abs(z) / recipe["temperature"] > 15_000:
            fuzz.require_finite(z_eff=value)
            continue  # beyond the oracle's bracket
        expected = float(oracles.effective_logit(z, label, **recipe))
        ends = abs(z) + (abs(scipy.special.logit(label)) if 0 < label < 1 else 0)
        fuzz.require_close(value, expected, 1e-12 * (abs(expected) + ends), "z_eff")


def check_multiclass_effective_logits(draw):
    n_classes = draw(st.sampled_from([3, 4, 7]))
    size = draw(st.sampled_from([1e-8, 1.0, 10.0, 700.0]))
    z_t = size * np.random.default_rng(draw(fuzz.SEEDS)).uniform(-1, 1, n_classes)
    z_t -= z_t.mean()
    y = np.eye(n_classes)[draw(st.integers(0, n_classes - 1))]
    if draw(st.booleans()):
        y = (y + 1 / n_classes) / 2
    recipe = {"soft_ratio": draw(fuzz.SOFT_RATIOS), "temperature": draw(fuzz.TEMPERATURES)}
    actual = effective_logits(z_t[None], y[None], **recipe)[0]
    fuzz.require_close(actual.sum(), 0, 1e-12 * (1 + np.abs(actual).max()), "sum of z_eff")
    if recipe["soft_ratio"] == 1:
        assert (actual == z_t).all()
        return
    fuzz.require_finite(z_eff=actual)
    if np.abs(z_t).max() / min(recipe["temperature"], 1) > 60:
        return  # the oracle would need thousands of digits
    expected = oracles.multiclass_effective_logits(z_t, y, *recipe.values(), actual)
    scale = 1 + np.abs(z_t).max() + np.abs(actual).max()
    fuzz.require_close(actual, np.array(expected, dtype=float), 1e-10 * scale, "z_eff")


def check_recipes(draw):
    z_t, y = draw(st.floats(-700, 700)), draw(st.sampled_from([0.0, 1.0, 0.5]))
    rho, T = draw(fuzz.SOFT_RATIOS), draw(fuzz.TEMPERATURES)
    with mpmath.workdps(60):
        exact_rho, exact_T = mpmath.mpf(rho), mpmath.mpf(T)
        ratio = exact_T * (1 - exact_rho) / exact_rho
        margin = float(2 * exact_T * mpmath.atanh(ratio)) if ratio < 1 else np.inf
        n_classes = draw(st.integers(2, 1000))
        weight = exact_rho * exact_T**2 / n_classes
        rho_of_mean = float(weight / (weight + 1 - exact_rho))
    actual = float(correction_margin(rho, T))
    assert actual == margin or abs(actual - margin) <= 1e-12 * margin
    actual = equivalent_soft_ratio(
        rho, T, temperature_scaling="squared", reduction="mean", n_classes=n_classes
    )
    fuzz.require_close(actual, rho_of_mean, 1e-13 * rho_of_mean, "equivalent_soft_ratio")
    expected = oracles.correction_logit(z_t, y, T) if abs(z_t) / T < 800 else mpmath.inf
    if abs(expected) > 1e307:
        try:
            actual = correction_logits([z_t], [y], temperature=T)
        except ValueError:
            return
        fuzz.require_finite(correction_logits=actual)
        return
    actual = correction_logits([z_t], [y], temperature=T)[0]
    expected = float(expected)
    tolerance = (1e-11 + 4 * EPS * abs(z_t) / T) * abs(expected) + 1e-300
    if y == 0.5:  # the label and the soft label cancel
        tolerance += 1e-14 * T**2 * (1 + np.exp(min(abs(z_t) / T, 700)))
    fuzz.require_close(actual, expected, tolerance, "δz_h")


def check_diagnosis(draw):
    rng = np.random.default_rng(draw(fuzz.SEEDS))
    n = draw(st.sampled_from([1, 2, 30]))
    n_classes = draw(st.sampled_from([2, 2, 3]))
    z_t = draw(fuzz.logits_of(n, n_classes, rng))
    y = rng.integers(0, n_classes, n)
    rhos = draw(st.lists(fuzz.SOFT_RATIOS, min_size=1, max_size=3))
    temperatures = draw(st.lists(fuzz.TEMPERATURES, min_size=1, max_size=3))
    table = diagnose_teacher(z_t, y, soft_ratios=rhos, temperatures=temperatures)
    wrong = ((z_t > 0) if n_classes == 2 else z_t.argmax(axis=1)) != y
    assert (table["n_teacher_errors"] == wrong.sum()).all()
    fuzz.require_range(table["n_errors_overruled"], 0, wrong.sum(), "n_errors_overruled")
    fuzz.require_range(table["n_correct_left_alone"], 0, n - wrong.sum(), "n_correct_left_alone")
    if n_classes == 2:
        margin = table["correction_margin"][:, None]
        assert not np.isnan(margin).any()
        decided = np.abs(np.abs(z_t) - margin) > 1e-9 * margin + 1e-300
        decided |= np.isinf(margin)
        overruled = (wrong & decided & (np.abs(z_t) < margin)).sum(axis=1)
        undecided = (wrong & ~decided).sum(axis=1)
        assert (table["n_errors_overruled"] >= overruled).all()
        assert (table["n_errors_overruled"] <= overruled + undecided).all()


# Kernels


def check_kernel(draw):
    X, _ = draw(fuzz.rows_of(max_rows=4))
    kernel = draw(fuzz.ntks())
    K, block, diagonal = kernel(X), kernel(X, X), kernel.diag(X)
    fuzz.require_finite(K=K, block=block, diagonal=diagonal)
    assert (K == K.T).all()
    roots = np.sqrt(diagonal)
    scale = roots[:, None] * roots + 1e-290  # below it numbers lose digits by underflow
    smooth = kernel.activation in ("erf", "gelu")
    # Rows that are parallel, or opposite, up to the bias: angles are known to √ε.
    tolerance = (
        smooth_resolution(kernel, X)
        if smooth
        else np.where(are_opposite(X), 3e-8, 1e-12 * kernel.depth)
    )
    fuzz.require_close(np.diag(K), diagonal, 1e-15 * scale.diagonal(), "diagonal of K(X)")
    fuzz.require_close(block, K, 10 * tolerance * scale, "K(X, X)")
    if (
        X.shape[1] > 5
        or kernel.depth > 3
        or (smooth and not (np.abs(X).max() <= 1 and kernel.weight_std <= 1))
    ):
        return
    settings = kernel.get_params()
    settings = {k: settings[k] for k in ("depth", "activation", "weight_std", "bias_std")}
    opposite = are_opposite(X)
    for i, j in fuzz.pairs(len(X)):
        if kernel.bias_std == 0 and opposite[i, j]:
            continue  # rounding takes the oracle's cosine below −1
        if smooth and not (diagonal[i] > 1e-140 and diagonal[j] > 1e-140):
            continue  # the oracle for these works in doubles
        with mpmath.workdps(50):
            expected = float(oracles.infinite_kernel(X[i], X[j], **settings))
        tolerance_ij = np.broadcast_to(tolerance, scale.shape)[i, j] * scale[i, j]
        fuzz.require_close(K[i, j], expected, tolerance_ij, f"K[{i}, {j}]")


def smooth_resolution(kernel, X):
    """Relative error of a smooth kernel: the erf is a step to inputs as large as 1/√ε."""
    if kernel.activation == "gelu":
        return 1e-7
    return 1e-11 + 100 * EPS * (kernel.weight_std * np.abs(X).max()) ** 2


def are_opposite(X):
    """Where two rows point in opposite directions to a thousandth of a degree."""
    unit = X / np.maximum(np.abs(X).max(axis=1, keepdims=True), 1e-300)
    unit = unit / np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-300)
    return unit @ unit.T < -1 + 1e-8


# Estimators


def check_classifier(model, X):
    """What holds for every fitted classifier; returns its logits."""
    logits, probabilities = model.decision_function(X), model.predict_proba(X)
    predicted = model.predict(X)
    fuzz.require_finite(logits=logits)
    fuzz.require_range(probabilities, 0, 1, "predict_proba")
    fuzz.require_close(probabilities.sum(axis=1), 1, 10 * resolution(model), "Σ predict_proba")
    best = (logits > 0).astype(int) if logits.ndim == 1 else logits.argmax(axis=1)
    assert (predicted == model.classes_[best]).all()
    loaded = pickle.loads(pickle.dumps(model)).decision_function(X)
    fuzz.require_close(loaded, logits, rounding(model, X), "logits after pickling")
    return logits.astype(float)


def rounding(model, X):
    """What rounding may make of a sum over the training rows: other memory, another order."""
    with np.errstate(over="ignore"):
        cross = np.abs(model.kernel_(X, model.X_fit_.astype(float)))
        size = (cross @ np.abs(model.dual_coef_.astype(float))).max()
    return 1e3 * resolution(model) * size + 1e-300


def student_of(draw):
    return LinearizedKDStudent(
        kernel=draw(fuzz.kernels()),
        soft_ratio=draw(fuzz.SOFT_RATIOS),
        temperature=draw(fuzz.TEMPERATURES),
        temperature_scaling=draw(st.sampled_from(["none", "squared"])),
        ridge=draw(fuzz.ALPHAS),
        dtype=draw(fuzz.DTYPES),
    )


def fitted_student(draw, **problem_options):
    problem, student = draw(fuzz.problems(**problem_options)), student_of(draw)
    with fuzz.nothing_half_fitted(student):
        student.fit(**problem.training_set)
    return problem, student


def check_student(draw):
    problem, student = fitted_student(draw)
    if not isinstance(student.kernel, type(lambda: 0)):  # a lambda does not pickle
        check_classifier(student, problem.X_new)
    fuzz.require_finite(norm=student.weight_change_norm_, rcond=student.rcond_)
    assert student.weight_change_norm_ >= 0
    a, z = student.dual_coef_.astype(float), student.effective_logits_.astype(float)
    fuzz.require_finite(dual_coef_=a, effective_logits_=z)

    # The rows and their effective logits.
    eps = resolution(student)
    X, members, _, totals = fuzz.merged(
        problem, np.float32 if student.dtype == "float32" else np.float64
    )
    np.testing.assert_array_equal(student.X_fit_, X)
    within_oracle = np.abs(problem.teacher_logits).max() < 15_000 * student.temperature
    if z.ndim == 1 and eps == EPS and within_oracle:
        check_effective_logit_of_a_group(problem, student, members[-1], z[-1])

    # (Θ + α W⁻¹) a = z_eff: the backward error of a stable solve, however ill-conditioned.
    with np.errstate(over="ignore"):
        A = dense_matrix(student, totals, student.ridge)
    if not np.isfinite(A).all():
        return
    size, largest = np.abs(A).max() or 1.0, np.abs(a).max() or 1.0
    scaled = z / size / largest
    residual = (A / size) @ (a / largest) - scaled
    slack = 1e3 * len(A) * eps
    tolerance = slack * (norm(a / largest) * norm(A / size) + norm(scaled))
    tolerance += 1e3 * len(A) * UNDERFLOW / largest
    tolerance += 1e-300 / size / largest
    fuzz.require_close(residual, 0 * z, tolerance, "(A a − z_eff) / |A| / |a|")

    # The student itself, where it is determined.
    if is_decided(A, eps):
        expected = solved(A, z)
        tolerance = slack * condition(A) * np.linalg.norm(expected / largest) * largest
        fuzz.require_close(a, expected, tolerance + 1e-300, "dual_coef_")


def check_effective_logit_of_a_group(problem, student, group, value):
    """Compare z_eff of one distinct row with bisection on the mean of its labels."""
    rho, T = student.soft_ratio, student.temperature
    if student.temperature_scaling == "squared":
        rho = oracles.squared_soft_ratio(rho, T)
    z_t = problem.teacher_logits[group]
    weights = [1.0] * len(group)
    if problem.sample_weight is not None:
        weights = problem.sample_weight[group].tolist()
    labels = problem.y[group] == np.unique(problem.y)[1]
    total = mpmath.fsum(weights)
    hard = mpmath.fsum(w for w, label in zip(weights, labels, strict=True) if label) / total
    if max(abs(z_t)) / T > 5000 and len(set(z_t)) > 1:
        return  # the oracle would need thousands of digits
    soft = float(z_t[0]) if len(set(z_t)) == 1 else oracles.mean_soft_label_logit(z_t, weights, T)
    ends = abs(soft) + T
    if 0 < hard < 1:
        spread = abs(mpmath.log(hard / (1 - hard)))
        if spread > 30:
            return  # the mean label rounds to 0 or 1, which is not the same target
        ends += spread * (1 + mpmath.exp(spread) * 1e-3)
    expected = soft if student.soft_ratio == 1 else oracles.effective_logit(soft, hard, rho, T)
    tolerance = float(1e-11 * (abs(expected) + ends))
    fuzz.require_close(value, float(expected), tolerance, "effective_logits_")


def check_scorers(draw):
    problem, student = fitted_student(draw)
    held_out = {"teacher_logits": problem.new_teacher_logits}
    risk = neg_transfer_risk_scorer(student, problem.X_new, problem.y_new, **held_out)
    fuzz.require_range(risk, -1, 0, "neg_transfer_risk_scorer")
    score = neg_data_inefficiency_scorer(student, problem.X_new, problem.y_new, **held_out)
    fuzz.require_range(score, -np.inf, 0, "neg_data_inefficiency_scorer")


def check_student_of_a_tree(draw):
    """A teacher whose probabilities are 0 and 1, cross-fitted or frozen."""
    problem, student = draw(fuzz.problems()), student_of(draw)
    if np.abs(problem.X).max() > 1e30:  # which a tree, in single precision, cannot take
        problem = problem._replace(X=problem.X / 1e140, X_new=problem.X_new / 1e140)
    tree = DecisionTreeClassifier(max_depth=draw(st.sampled_from([1, None])), random_state=0)
    if draw(st.booleans()):
        tree = FrozenEstimator(tree.fit(problem.X, problem.y))
    student.set_params(teacher=tree, cv=2, kernel=draw(fuzz.ntks()))
    with fuzz.nothing_half_fitted(student):
        student.fit(problem.X, problem.y, sample_weight=problem.sample_weight)
    check_classifier(student, problem.X_new)


def check_teacher(draw):
    problem = draw(fuzz.problems(max_rows=20))
    teacher = NTKTeacher(
        kernel=draw(fuzz.ntks()),
        loss=draw(st.sampled_from(["log_loss", "squared_error"])),
        stopping_time=draw(
            st.sampled_from([None, None, 1e-3, 3.0, [0.1, 1.0, 30.0], 1e4, 1e-150, 1e150])
        ),
        ridge=draw(fuzz.ALPHAS),
        dtype=draw(fuzz.DTYPES),
    )
    X, y, sample_weight = problem.X, problem.y, problem.sample_weight
    with fuzz.nothing_half_fitted(teacher):
        teacher.fit(X, y, sample_weight)
    logits = check_classifier(teacher, problem.X_new)
    *_, last = teacher.staged_decision_function(problem.X_new)
    fuzz.require_close(last, logits, rounding(teacher, problem.X_new), "last stage")
    fuzz.require_finite(norm=teacher.weight_change_norm_)
    if resolution(teacher) == EPS:
        compare_with_training(problem, teacher)


def compare_with_training(problem, teacher):
    """Compare the logits on the training rows with a general-purpose method."""
    X, members, weights, totals = fuzz.merged(problem)
    K, a = teacher.kernel_(X, X), teacher.dual_coef_
    if not (np.abs(K).max() * np.abs(a).max() < 1e5 and np.isfinite(totals).all()):
        return  # logits so large that rounding in K a moves them
    classes = np.searchsorted(teacher.classes_, problem.y)
    hard = oracles.one_hot(classes, len(teacher.classes_))
    labels = np.stack(
        [(hard[g].T * (weights[g] / weights[g].max())).T.sum(axis=0) for g in members]
    )
    shares = np.array([(weights[g] / weights[g].max()).sum() for g in members])
    labels = (labels.T / shares).T
    f = K @ a
    targets = 2 * labels - 1 if labels.ndim == 1 else labels - 1 / labels.shape[1]
    if teacher.stopping_time is None:
        if teacher.loss == "squared_error" or not teacher.fit_report_.converged:
            return  # the student's solve, or a ConvergenceWarning was given
        p = scipy.special.expit(f) if f.ndim == 1 else scipy.special.softmax(f, axis=1)
        force = ((labels - p).T * totals).T
        gap = np.linalg.norm(force - teacher.ridge * a)
        assert gap <= 1e-6 * np.linalg.norm(force) + 1e-300, f"not stationary: {gap}"
        return
    times = np.atleast_1d(teacher.stopping_time)
    omega = totals / totals.sum()
    if teacher.loss == "squared_error":
        if np.abs(K).max() > 1e8 / times[-1] or not (omega > 1e-12).all():
            return
        expected = oracles.gradient_flow_squared_error(K, targets, omega, times)[-1]
        fuzz.require_close(f, expected, 1e-3, "logits on the training rows")
    elif len(K) <= 5 and 1e-6 / times[-1] < np.abs(K).max() < 300 / times[-1]:
        expected = K @ oracles.gradient_flow_log_loss(K, labels, omega, times)[-1]
        fuzz.require_close(f, expected, 2e-3 * (1 + np.abs(f).max()), "logits after training")


def check_prefix_path(draw):
    problem, student = fitted_student(draw, max_rows=20)
    n = len(student.X_fit_)
    sizes = sorted(draw(st.sets(st.integers(1, n), min_size=1))) if draw(st.booleans()) else None
    held_out = {}
    if draw(st.booleans()):
        held_out = {"X": problem.X_new, "teacher_logits": problem.new_teacher_logits}
        if draw(st.booleans()):
            held_out["y"] = problem.y_new
    grid = None
    if draw(st.booleans()):
        grid = {"soft_ratio": [0.3, 1.0], "temperature": [draw(fuzz.TEMPERATURES)]}
    options = {
        "sizes": sizes,
        "n_permutations": draw(st.sampled_from([None, None, 1, 3])),
        "param_grid": grid,
        "init": draw(st.sampled_from(["student", "student", "random"])),
        "window": draw(st.sampled_from([1.0001, 2.0, 1e6])),
    }
    path = student.prefix_path(**held_out, **options, random_state=0)
    shape = (() if grid is None else (2,), (options["n_permutations"] or 1,), (len(path.sizes),))
    for name in sorted(set(path) - {"sizes", "params"}):
        fuzz.require_finite(**{name: path[name]})
    assert path.weight_change_norm.shape == sum(shape, ())
    for name in ("transfer_risk", "error"):
        if name in path:
            fuzz.require_range(path[name], 0, 1, name)
    if options["init"] == "random" or options["n_permutations"] or grid:
        return
    if student.ridge > 0 or student.jitter_ > 0:
        return
    norms = path.weight_change_norm[0]
    eps = resolution(student)
    assert (np.diff(norms) >= -10 * n * eps * norms[-1]).all()
    A = dense_matrix(student, np.ones(n), 0.0)
    if is_decided(A, eps) and student.jitter_ == 0:
        z = student.effective_logits_.astype(float)
        squares = [(z[:m] * solved(A[:m, :m], z[:m])).sum() for m in path.sizes]
        expected = np.sqrt(np.maximum(squares, 0))
        tolerance = 1e3 * n * eps * condition(A) * expected + 1e-300
        fuzz.require_close(norms, expected, tolerance, "weight_change_norm")


# Frames and metrics


def frame_of(draw, max_rows=20):
    """A tangent frame of distinct rows, its dense matrix, and targets."""
    problem = draw(fuzz.problems(max_rows))
    problem = problem._replace(sample_weight=None)
    X, members, _, _ = fuzz.merged(problem)
    kernel, ridge = draw(fuzz.ntks()), draw(fuzz.ALPHAS)
    frame = TangentFrame(as_kernel_function(kernel), torch.as_tensor(X), ridge=ridge)
    A = kernel(X) + (ridge + frame.jitter) * np.eye(len(X))
    first = [group[0] for group in members]
    return (
        problem,
        frame,
        A,
        problem.teacher_logits[first],
        np.unique(problem.y, return_inverse=True)[1][first],
    )


def check_frame(draw):
    problem, frame, A, z, _ = frame_of(draw)
    n, targets = len(A), torch.as_tensor(z)
    rows = torch.as_tensor(problem.X_new)
    u, v = frame.features(rows)
    fuzz.require_finite(u=u, v=v)
    assert (v >= 0).all()
    folds = torch.arange(n) % max(2, n // 2)
    results = {
        "loo": frame.loo(targets),
        "prefix_norms": frame.prefix_norms(targets),
        "prefix_predictions": frame.prefix_predictions(rows, targets),
    }
    fuzz.require_finite(**results)
    if not is_decided(A) or frame.jitter > 0:
        return
    slack = 1e3 * n * EPS * condition(A)
    tolerance = slack * (np.abs(z).max() + np.abs(solved(A, z)).max() * np.abs(A).max()) + 1e-100

    def refitted(train, held_out):
        if not len(train):
            return np.zeros_like(z[held_out])
        # The ridge is on the diagonal alone, so A holds the kernel between different rows.
        return A[np.ix_(held_out, train)] @ solved(A[np.ix_(train, train)], z[train])

    index = np.arange(n)
    loo = np.concatenate([refitted(np.delete(index, i), index[i : i + 1]) for i in index])
    fuzz.require_close(results["loo"], loo, tolerance, "loo")
    if not resolves_blocks(frame):
        return
    student = StudentInFrame.of(frame, targets[:, None])
    for fold in folds.unique():
        out = (folds == fold).nonzero()[:, 0]
        found = block_held_out(student, out).logits[:, 0]
        expected = refitted(np.setdiff1d(index, out.numpy()), out.numpy())
        fuzz.require_close(found, expected, tolerance, "kfold")


def check_metrics(draw):
    problem, frame, A, z, y = frame_of(draw)
    n = len(A)
    z = z if z.ndim == 1 else z - z.mean(axis=1, keepdims=True)
    T = draw(fuzz.TEMPERATURES)
    norms = frame.prefix_norms(torch.as_tensor(z)).numpy()
    if n > 1 and norms[0] > 0:
        inefficiency = data_inefficiency(norms)
        steps = np.arange(1, n) * np.diff(np.log(norms))
        fuzz.require_close(inefficiency[:-1], steps, 1e-12 * n, "data_inefficiency")
    angles = weight_change_angles(frame, z)
    fuzz.require_range(angles.to_oracle, 0, np.pi / 2, "to_oracle")
    fuzz.require_range(angles.centred, 0, np.pi, "centred")
    fuzz.require_close(angles.to_oracle[-1], 0, 1e-12, "to_oracle of all rows")
    _, v = frame.features(torch.as_tensor(problem.X_new))
    risks = power_function_bound(problem.new_teacher_logits, v, angles.oracle_norm, norms[-1] / 2)
    fuzz.require_range(risks, 0, 1, "power_function_bound")
    fuzz.require_range(phuong_lampert_bound(angles.to_oracle, n), 0, 1, "phuong_lampert_bound")
    k = draw(st.integers(0, n))
    bound = binomial_upper_bound(k, n, 0.9)
    fuzz.require_close(bound, oracles.binomial_upper_bound(k, n, 0.9), 1e-10, "binomial bound")
    effect = hard_label_effect(frame, z, y, temperature=T, n_bootstraps=20, random_state=0)
    fuzz.require_finite(value=effect.value, interval=effect.interval)
    assert effect.sign == np.sign(effect.value)
    if is_decided(A) and frame.jitter == 0:
        squares = np.array([(z[:m] * solved(A[:m, :m], z[:m])).sum() for m in angles.sizes])
        if not squares[0] > 1e-290:
            return  # squares of norms that lose digits by underflow
        cosines = np.sqrt(np.maximum(squares, 0) / squares[-1])
        slack = 1e3 * n * EPS * condition(A)
        fuzz.require_close(np.cos(angles.to_oracle), cosines, slack, "cos α_m")
        z_g = 2.0 * y - 1 if z.ndim == 1 else np.eye(z.shape[1])[y] - 1 / z.shape[1]
        correction = correction_logits(z, y, temperature=T)
        size = np.abs(A).max()
        expected = oracles.hard_label_effect(A / size, z, correction, z_g)
        ratio = norm(correction) / norm(z)
        fuzz.require_close(effect.value, expected, slack * condition(A) * ratio + 1e-300, "Eq. 12")


CHECKS = {
    name.removeprefix("check_"): check
    for name, check in list(globals().items())
    if name.startswith("check_")
    and name not in ("check_classifier", "check_effective_logit_of_a_group")
}
