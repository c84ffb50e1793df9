"""Slow, obvious re-implementations from the paper, to test the library against."""

import mpmath
import numpy as np
import scipy.integrate
import scipy.special

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


def ridge_minimum_log_loss(K, labels, weights, alpha, start):
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
                    gradient[i * n_classes + c] = weights[i] * (y[i, c] - p[c]) - alpha * a[i, c]
                    for d in range(n_classes):
                        curvature = weights[i] * p[c] * ((c == d) - p[d])
                        for j in range(n):
                            hessian[i * n_classes + c, j * n_classes + d] = curvature * exact_K[
                                i, j
                            ] + alpha * (i == j and c == d)
            step = mpmath.lu_solve(hessian, gradient)
            for i in range(n):
                for c in range(n_classes):
                    a[i, c] += step[i * n_classes + c]
            if mpmath.norm(step) < mpmath.mpf(10) ** -25 * (1 + mpmath.norm(a)):
                return np.array(a.tolist(), dtype=float).reshape(labels.shape)
    raise AssertionError("the oracle did not converge")
