"""Slow, obvious re-implementations from the paper, to test the library against."""

import mpmath
import numpy as np
import scipy.integrate
import scipy.special
import scipy.stats
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

# Training in function space


def relu_ntk(X, depth=3):
    """ReLU tangent kernel, weight_std = bias_std = 1, by its recursion over the layers."""
    S = X @ X.T / X.shape[1] + 1
    theta = S.copy()
    for _ in range(depth):
        norm = np.sqrt(np.outer(np.diag(S), np.diag(S)))
        cosine = np.clip(S / norm, -1, 1)
        np.fill_diagonal(cosine, 1)
        angle = np.arccos(cosine)
        S = norm * (np.sin(angle) + (np.pi - angle) * cosine) / (2 * np.pi) + 1
        theta = S + theta * (np.pi - angle) / (2 * np.pi)
    return theta


def gradient_flow_log_loss(K, labels, weights, times):
    """Dual coefficients at each time by a general-purpose stiff integrator (LSODA)."""
    n_rows, shape = len(K), labels.shape
    is_binary = labels.ndim == 1

    def probabilities(a):
        f = K @ a.reshape(shape)
        return scipy.special.expit(f) if is_binary else scipy.special.softmax(f, axis=1)

    def velocity(t, a):
        return ((labels - probabilities(a)).T * weights).T.ravel()

    def jacobian(t, a):
        p = probabilities(a)
        if is_binary:
            return -(weights * p * (1 - p))[:, None] * K
        blocks = p[:, :, None] * np.eye(shape[1]) - p[:, :, None] * p[:, None, :]
        blocks *= weights[:, None, None]
        return -np.einsum("icd,ij->icjd", blocks, K).reshape(labels.size, labels.size)

    solution = scipy.integrate.solve_ivp(
        velocity,
        (0, times[-1]),
        np.zeros(labels.size),
        method="LSODA",
        t_eval=times,
        rtol=1e-9,
        atol=1e-11,
        jac=jacobian,
    )
    assert solution.success, n_rows
    return solution.y.T.reshape(len(times), *shape)


def distillation_flow(K, soft, labels, weights, times, recipe, *, start=0.0, decay=0.0):
    """Logits at each time of da/dt = ω r(z₀ + K a) - μ a, r of Eq. 2, by LSODA.

    ``soft`` are the shares σ(z_t/T), ``start`` the logits z₀.
    """
    rho, big_t = recipe["soft_ratio"], recipe["temperature"]
    scale = big_t**2 if recipe["temperature_scaling"] == "squared" else 1.0
    shape = labels.shape

    def probabilities(f):
        return scipy.special.expit(f) if f.ndim == 1 else scipy.special.softmax(f, axis=1)

    def velocity(t, a):
        f = start + K @ a.reshape(shape)
        residual = rho * scale / big_t * (soft - probabilities(f / big_t))
        residual = residual + (1 - rho) * (labels - probabilities(f))
        return (residual.T * weights).T.ravel() - decay * a

    solution = scipy.integrate.solve_ivp(
        velocity,
        (0, times[-1]),
        np.zeros(labels.size),
        method="LSODA",
        t_eval=times,
        rtol=1e-9,
        atol=1e-11,
    )
    assert solution.success
    return np.stack([start + K @ a.reshape(shape) for a in solution.y.T])


def gradient_flow_squared_error(K, targets, weights, times):
    """Logits at each time in closed form, from the eigenvectors of √ω K √ω."""
    root = np.sqrt(weights)
    eigenvalues, vectors = np.linalg.eigh(root[:, None] * K * root)
    columns = root[:, None] * targets.reshape(len(K), -1)
    logits = [
        vectors @ (-np.expm1(-t * eigenvalues)[:, None] * (vectors.T @ columns)) / root[:, None]
        for t in times
    ]
    return np.reshape(logits, (len(times), *targets.shape))


def log_loss(logits, labels, weights):
    """Weighted sum of the cross-entropies of soft labels."""
    if labels.ndim == 1:
        losses = np.logaddexp(0, logits) - labels * logits
    else:
        losses = scipy.special.logsumexp(logits, axis=1) - (labels * logits).sum(axis=1)
    return weights @ losses


def ridge_minimum_log_loss(K, labels, weights, ridge, start):
    """Dual coefficients at the minimum, by Newton's method with 40 digits from near it."""
    with mpmath.workdps(40):
        n_classes = 1 if labels.ndim == 1 else labels.shape[1]
        n = len(K)
        exact_K = mpmath.matrix(K.tolist())
        a = mpmath.matrix(start.reshape(n, -1).tolist())
        y = mpmath.matrix(labels.reshape(n, -1).tolist())
        for _ in range(12):
            f = exact_K * a
            gradient, hessian = mpmath.zeros(n * n_classes, 1), mpmath.zeros(n * n_classes)
            for i in range(n):
                exps = [mpmath.exp(f[i, c]) for c in range(n_classes)]
                total = sum(exps) + (n_classes == 1)
                p = [e / total for e in exps]
                for c in range(n_classes):
                    gradient[i * n_classes + c] = weights[i] * (y[i, c] - p[c]) - ridge * a[i, c]
                    for d in range(n_classes):
                        curvature = weights[i] * p[c] * ((c == d) - p[d])
                        for j in range(n):
                            hessian[i * n_classes + c, j * n_classes + d] = curvature * exact_K[
                                i, j
                            ] + ridge * (i == j and c == d)
            step = mpmath.lu_solve(hessian, gradient)
            for i in range(n):
                for c in range(n_classes):
                    a[i, c] += step[i * n_classes + c]
            if mpmath.norm(step) < mpmath.mpf(10) ** -25 * (1 + mpmath.norm(a)):
                return np.array(a.tolist(), dtype=float).reshape(labels.shape)
    raise AssertionError("the oracle did not converge")


def one_hot(labels, n_classes):
    """Return class 1's indicator for two classes, one column per class for more."""
    return labels.astype(float) if n_classes == 2 else np.eye(n_classes)[labels]


def stationary_logits(soft, hard, soft_ratio, temperature):
    """Roots of the derivative of the distillation loss, row by row, given both kinds of labels."""

    def binary(s, h):
        def slope(z):
            student_soft = scipy.special.expit(z / temperature)
            gap = scipy.special.expit(z) - h
            return soft_ratio / temperature * (student_soft - s) + (1 - soft_ratio) * gap

        return scipy.optimize.brentq(slope, -200, 200, xtol=1e-14, rtol=1e-14)

    def many(s, h):
        def slope(z):
            student_soft, student = scipy.special.softmax(z / temperature), scipy.special.softmax(z)
            gap = soft_ratio / temperature * (student_soft - s) + (1 - soft_ratio) * (student - h)
            return gap + z.sum()  # the gauge: without it the root is a line

        return scipy.optimize.root(slope, np.log(s) - np.log(s).mean(), tol=1e-14).x

    return np.array(
        [(binary if soft.ndim == 1 else many)(*row) for row in zip(soft, hard, strict=True)]
    )


def soft_labels(teacher_logits, temperature):
    """Return σ(z/T), or the softmax over the classes."""
    if teacher_logits.ndim == 1:
        return scipy.special.expit(teacher_logits / temperature)
    return scipy.special.softmax(teacher_logits / temperature, axis=1)


# Infinite-width kernels


def piecewise_linear_averages(q11, q12, q22, slope):
    """E[g g] and E[g′g′] for g = max(h, 0) + slope min(h, 0) (Cho and Saul, 2009)."""
    scale = mpmath.sqrt(q11 * q22)
    theta = mpmath.acos(min(q12 / scale, mpmath.mpf(1))) if scale else mpmath.mpf(0)

    def relu_values(angle):
        sine, cosine = mpmath.sin(angle), mpmath.cos(angle)
        return scale * (sine + (mpmath.pi - angle) * cosine) / (2 * mpmath.pi)

    def relu_slopes(angle):
        return (mpmath.pi - angle) / (2 * mpmath.pi)

    # g(h) = relu(h) − slope relu(−h); the sign of h turns θ into π − θ
    opposite = mpmath.pi - theta
    values = (1 + slope**2) * relu_values(theta) - 2 * slope * relu_values(opposite)
    slopes = (1 + slope**2) * relu_slopes(theta) + 2 * slope * relu_slopes(opposite)
    return values, slopes


def piecewise_linear_averages_by_quadrature(theta, slope):
    """The same for unit variances and angle θ, by integration in polar coordinates."""
    pi = mpmath.pi
    corners = sorted({-pi / 2, pi / 2, theta - pi / 2, theta + pi / 2})
    corners.append(corners[0] + 2 * pi)

    def average(function):
        def integrand(alpha):
            return function(mpmath.cos(alpha)) * function(mpmath.cos(alpha - theta))

        return mpmath.quad(integrand, corners) / (2 * pi)

    # h = r cos α and h′ = r cos(α − θ) with E[r²] = 2
    values = 2 * average(lambda h: h if h > 0 else slope * h)
    return values, average(lambda h: 1 if h > 0 else slope)


def smooth_averages(q11, q12, q22, activation):
    """E[g g] and E[g′g′] for erf and GELU, by Gauss–Hermite quadrature in float64."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(150)
    weights = weights / weights.sum()
    cosine = min(q12 / np.sqrt(q11 * q22), 1.0)
    h = np.sqrt(q11) * nodes[:, None]
    other = np.sqrt(q22) * (cosine * nodes[:, None] + np.sqrt(1 - cosine**2) * nodes)
    density = scipy.stats.norm.pdf
    if activation == "erf":
        value = scipy.special.erf

        def derivative(z):
            return 2 / np.sqrt(np.pi) * np.exp(-(z**2))
    else:

        def value(z):
            return z * scipy.special.ndtr(z)

        def derivative(z):
            return scipy.special.ndtr(z) + z * density(z)

    return tuple(float(weights @ (g(h) * g(other)) @ weights) for g in (value, derivative))


def infinite_kernel(x, y, *, depth, activation, weight_std, bias_std, kind="ntk"):
    """The kernel of Eq. 1 for one pair of rows, layer by layer.

    Piecewise linear activations run in mpmath's current precision, smooth ones in float64.
    """
    number = float if activation in ("erf", "gelu") else mpmath.mpf
    x, y = [number(float(v)) for v in x], [number(float(v)) for v in y]
    w, b = number(weight_std) ** 2, number(bias_std) ** 2

    def averages(q11, q12, q22):
        if activation == "relu":
            return piecewise_linear_averages(q11, q12, q22, mpmath.mpf(0))
        if activation == "leaky_relu":
            return piecewise_linear_averages(q11, q12, q22, mpmath.mpf(0.01))
        return smooth_averages(q11, q12, q22, activation)

    def covariance(left, right):
        return w * sum(p * q for p, q in zip(left, right, strict=True)) / len(left) + b

    q11, q12, q22 = covariance(x, x), covariance(x, y), covariance(y, y)
    ntk = q12
    for _ in range(depth):
        values, slopes = averages(q11, q12, q22)
        q11 = w * averages(q11, q11, q11)[0] + b
        q22 = w * averages(q22, q22, q22)[0] + b
        q12 = w * values + b
        ntk = q12 + w * ntk * slopes
    return ntk if kind == "ntk" else q12


# Distillation targets


def sigmoid_difference(a, b):
    """σ(b) - σ(a) in mpmath, without cancellation."""
    return mpmath.sinh((b - a) / 2) / (2 * mpmath.cosh(a / 2) * mpmath.cosh(b / 2))


def effective_logit(z_t, y, soft_ratio, temperature):
    """Root of Eq. 3 by bisection, to 1e-31."""
    with mpmath.workdps(60):
        z_t, y, rho, T = (mpmath.mpmathify(v) for v in (z_t, y, soft_ratio, temperature))
        label = 20000 * (2 * y - 1) if y in (0, 1) else mpmath.log(y / (1 - y))

        def gradient(z):
            soft = sigmoid_difference(z_t / T, z / T)
            return rho / T * soft + (1 - rho) * sigmoid_difference(label, z)

        low, high = min(z_t, label), max(z_t, label)
        for _ in range(120):
            z = (low + high) / 2
            low, high = (z, high) if gradient(z) < 0 else (low, z)
        return z


def multiclass_effective_logits(z_t, y, soft_ratio, temperature, start, *, squared=False):
    """Root of the K-class form of Eq. 3 with Σ z = 0, polished to 50 digits from ``start``."""
    # A teacher's smallest share and the difference of shares at a high temperature take digits.
    gap = float(max(z_t) - min(z_t)) / min(temperature, 1)
    with mpmath.workdps(int(150 + gap / 2 + 4 * abs(mpmath.log10(temperature)))):
        rho, T = mpmath.mpf(soft_ratio), mpmath.mpf(temperature)
        weight = rho * T if squared else rho / T

        def softmax(z):
            e = [mpmath.exp(v) for v in z]
            return [v / mpmath.fsum(e) for v in e]

        p = softmax([mpmath.mpf(v) / T for v in z_t])
        y = [mpmath.mpf(v) for v in y]
        y = [v / mpmath.fsum(y) for v in y]
        z = [mpmath.mpf(v) for v in start]
        for _ in range(100):
            # Newton's method, each class in units of its own curvature, with Σ z = 0 as last row.
            soft, hard = softmax([v / T for v in z]), softmax(z)
            scale = [weight / T * s + (1 - rho) * h for s, h in zip(soft, hard, strict=True)]
            every = [weight * (s - a) + (1 - rho) * (h - b)
                     for s, a, h, b in zip(soft, p, hard, y, strict=True)]  # fmt: skip
            matrix, right = mpmath.eye(len(z)), mpmath.matrix(len(z), 1)
            for i, j in np.ndindex(len(z), len(z)):
                products = weight / T * soft[i] * soft[j] + (1 - rho) * hard[i] * hard[j]
                matrix[i, j] = 1 if i == len(z) - 1 else (matrix[i, j] - products / scale[i])
            for i in range(len(z)):
                right[i] = -every[i] / scale[i] if i < len(z) - 1 else -mpmath.fsum(z)
            step = mpmath.lu_solve(matrix, right)
            length = max(map(abs, step))
            z = [a + b / max(1, length) for a, b in zip(z, step, strict=True)]
            if length < 1e-50:
                return z
        raise ArithmeticError(f"no root from {start}")


def mean_soft_label_logits(z_t, weights, temperature):
    """T log of the weighted mean of softmax(z_t/T), centred, with as many digits as T takes."""
    T = mpmath.mpf(temperature)
    with mpmath.workdps(60 + int(2 * abs(mpmath.log10(T)))):
        mean = [mpmath.mpf(0)] * len(z_t[0])
        for row, weight in zip(z_t, weights, strict=True):
            e = [mpmath.exp(mpmath.mpf(float(v)) / T) for v in row]
            mean = [m + mpmath.mpf(weight) * v / mpmath.fsum(e)
                    for m, v in zip(mean, e, strict=True)]  # fmt: skip
        logs = [T * mpmath.log(m) for m in mean]
        return [v - mpmath.fsum(logs) / len(logs) for v in logs]


def squared_soft_ratio(soft_ratio, temperature):
    """Soft ratio ρT² / (ρT² + 1 - ρ) in mpmath."""
    with mpmath.workdps(60):
        rho, T = mpmath.mpf(soft_ratio), mpmath.mpf(temperature)
        return rho * T**2 / (rho * T**2 + 1 - rho)


def correction_logit(z_t, y, temperature):
    """T² (y - σ(z_t)) / [σ(z_t/T) (1 - σ(z_t/T))] in mpmath."""
    with mpmath.workdps(400):
        z_t, y, T = (mpmath.mpf(v) for v in (z_t, y, temperature))
        p = 1 / (1 + mpmath.exp(-z_t / T))
        return T**2 * (y - 1 / (1 + mpmath.exp(-z_t))) / (p * (1 - p))


def mean_soft_label_logit(z_t, weights, temperature):
    """T logit of the weighted mean of σ(z_t/T), in mpmath."""
    with mpmath.workdps(50 + int(max(abs(z_t)) / temperature)):
        T, w = mpmath.mpf(temperature), [mpmath.mpf(v) for v in weights]
        p = [1 / (1 + mpmath.exp(-mpmath.mpf(v) / T)) for v in z_t]
        mean = mpmath.fsum(a * b for a, b in zip(w, p, strict=True)) / mpmath.fsum(w)
        return T * mpmath.log(mean / (1 - mean))


# Weight changes as explicit vectors


class RandomFeatures:
    """A finite feature map φ(x) ∈ R^p; called with two arrays of rows it is its kernel."""

    def __init__(self, n_features, n_weights, rng):
        self.directions = rng.normal(size=(n_features, n_weights))
        self.phases = rng.uniform(0, 2 * np.pi, size=n_weights)

    def map(self, X):
        return np.cos(X @ self.directions + self.phases) + 0.3

    def __call__(self, X, Y):
        return self.map(X) @ self.map(Y).T


def minimum_norm_weights(features, logits):
    """The smallest weights W, (p,) or (p, K), with features @ W = logits."""
    weights, _, rank, _ = np.linalg.lstsq(features, logits, rcond=None)
    assert rank == len(features)
    np.testing.assert_allclose(features @ weights, logits, atol=1e-9)
    return weights


def angle(a, b):
    """Angle between two vectors, or matrices under the Frobenius product, in long doubles."""
    a, b = (np.asarray(v, dtype=np.longdouble).ravel() for v in (a, b))
    a, b = a / np.sqrt(a @ a), b / np.sqrt(b @ b)
    return float(2 * np.arctan2(np.sqrt(((a - b) ** 2).sum()), np.sqrt(((a + b) ** 2).sum())))


def cosine_to_ground_truth(K, student_targets, truth_targets):
    """Eq. 11, the weight changes being Θ_n⁻¹ applied to the targets."""
    student, truth = (np.linalg.solve(K, z) for z in (student_targets, truth_targets))
    return (truth_targets * student).sum() / np.sqrt(
        (truth_targets * truth).sum() * (student_targets * student).sum()
    )


def hard_label_effect(K, teacher_targets, correction, truth_targets, truth_norm=None):
    """Eq. 12 as it stands."""

    def inner(a, b):
        return (a * np.linalg.solve(K, b)).sum()

    if truth_norm is None:
        truth_norm = np.sqrt(inner(truth_targets, truth_targets))
    t_t = inner(teacher_targets, teacher_targets)
    bracket = inner(truth_targets, correction) - inner(truth_targets, teacher_targets) / t_t * (
        inner(teacher_targets, correction)
    )
    return bracket / (truth_norm * np.sqrt(t_t))


def binomial_upper_bound(n_errors, n_rows, confidence_level):
    """The risk at which n_errors or fewer have probability 1 − c, by bisection in mpmath."""
    if n_errors == n_rows:
        return 1.0
    with mpmath.workdps(30):

        def excess(risk):
            seen = mpmath.betainc(n_errors + 1, n_rows - n_errors, 0, risk, regularized=True)
            return seen - mpmath.mpf(confidence_level)

        return float(mpmath.findroot(excess, (0, 1), solver="bisect", tol=1e-40, maxsteps=200))


# Tangent kernels of torch modules


def tangent_kernel(module, inputs):
    """All Θ_kl(x, x′) = J_k(x) J_l(x′)ᵀ, shape (n, K, n, K), from whole Jacobians by torch.func."""
    trained = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}

    def outputs(weights, x):
        return torch.func.functional_call(module, weights, (x[None],)).reshape(-1)

    jacobians = []
    for x in inputs:
        # torch.func has no rules for fused attention
        with sdpa_kernel(SDPBackend.MATH):
            jacobian = torch.func.jacrev(outputs)(trained, x)
        jacobians.append(torch.cat([part.flatten(1) for part in jacobian.values()], dim=1))
    J = torch.stack(jacobians)
    return torch.einsum("nkp,mlp->nkml", J, J)


def shared_tangent_kernel(module, inputs):
    """The mean over outputs of Θ_kk, shape (n, n); for two outputs the kernel of f₁ − f₀."""
    full = tangent_kernel(module, inputs)
    if full.shape[1] == 2:
        return full[:, 1, :, 1] - full[:, 1, :, 0] - full[:, 0, :, 1] + full[:, 0, :, 0]
    return torch.einsum("nkmk->nm", full) / full.shape[1]
