r"""Training in function space to convergence: the minimum of the log loss plus a ridge.

    J(a) = Σ_i w_i ℓ(y_i, f_i) + λ/2 aᵀ K a,   f = K a,

(symbols as in `_function_space`, with raw weights w in place of ω) is convex, and stationary where
w r(K a) = λ a. Newton's method with conjugate gradients serves two classes and many alike and needs
K only in products. scipy's minimizers do not fit: in a, the Hessian K W K + λ K squares the
condition number of K. Whitening by a Cholesky factor would need a second n² array and the jitter of
a factorization, and would stay on the CPU.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sklearn_kd.training._function_space import (
    CrossEntropy,
    CurvatureRoot,
    KernelProduct,
    Term,
)

__all__ = ["MinimumInfo", "ridge_minimum"]

MAX_NEWTON_STEPS = 100
MAX_PRODUCTS_PER_STEP = 1000
MAX_HALVINGS = 30


class MinimumInfo(NamedTuple):
    """How a minimization ended.

    Parameters
    ----------
    converged : bool
        Whether ``residual`` came down to the tolerance.
    residual : float
        Norm of w r(K a) - λ a over that of w r(K a), with K a computed afresh.
    n_iter : int
        Newton steps.
    n_products : int
        Products with the kernel matrix.
    """

    converged: bool
    residual: float
    n_iter: int
    n_products: int


def ridge_minimum(
    kernel_matrix: Tensor,  # (n, n)
    labels: Tensor,  # (n,) or (n, C)
    weights: Tensor,  # (n,)
    *,
    ridge: float,
    tol: float = 1e-8,
) -> tuple[Tensor, MinimumInfo]:
    r"""Minimize the log loss of a kernel machine with a ridge on its squared RKHS norm.

    .. math:: \min_a \; \sum_i w_i\, \ell\bigl(y_i, (K a)_i\bigr) + \tfrac{\lambda}{2} a^\top K a

    with the binary cross-entropy or, for C classes, the cross-entropy of the softmax (the ridge
    summed over classes). It is :class:`sklearn.linear_model.LogisticRegression` with
    ``C=1 / ridge`` and no intercept on features whose inner products are K. Coefficients of C
    classes sum to zero in each row.

    Parameters
    ----------
    kernel_matrix : Tensor of shape (n, n)
        Symmetric, positive semi-definite, float64 or float32. It is only multiplied with.
    labels : Tensor of shape (n,) or (n, C)
        Probabilities of the positive class, in [0, 1], or rows of the simplex.
    weights : Tensor of shape (n,)
        Positive row weights, 1 for an unweighted row.
    ridge : float
        Ridge λ, positive.
    tol : float, default=1e-8
        Largest relative residual of stationarity; in float32 no less than 1e-4.

    Returns
    -------
    coefs : Tensor of shape (n,) or (n, C)
        Dual coefficients a.
    info : MinimumInfo
        Whether and how it converged. Without convergence the coefficients are the last iterate.

    Raises
    ------
    ValueError
        If ``ridge`` is not positive or the kernel matrix has non-finite entries.

    Examples
    --------
    >>> import torch
    >>> from sklearn_kd.training._ridge_minimum import ridge_minimum
    >>> K, labels = torch.eye(2, dtype=torch.float64), torch.tensor([0.0, 1.0]).double()
    >>> coefs, info = ridge_minimum(K, labels, torch.ones(2).double(), ridge=1.0)
    >>> info.converged, coefs.tolist()  # a = 1 - sigmoid(a)
    (True, [-0.40105..., 0.40105...])
    """
    if not ridge > 0:
        raise ValueError(f"ridge={ridge} must be positive: the log loss alone has no minimum.")
    tol = max(tol, 1e3 * torch.finfo(kernel_matrix.dtype).eps)
    product = KernelProduct(kernel_matrix)
    columns = (labels[None] if labels.ndim == 1 else labels.mT)[None]  # one run: (1, C, n)
    loss = CrossEntropy([Term.of_labels(columns)])
    coefs = torch.zeros_like(columns)
    logits = torch.zeros_like(columns)
    n_iter = 0
    while True:
        force = weights * loss.residual(logits)
        gap = force - ridge * coefs
        relative = gap.norm().item() / (force.norm().item() or 1.0)
        if relative <= tol or n_iter == MAX_NEWTON_STEPS:
            break
        root = loss.curvature_root(logits, weights[None])
        # A tenth at first, then ever finer, for superlinear convergence.
        direction = _newton_direction(product, root, gap, ridge, accuracy=min(0.1, relative))
        length = _step_length(coefs, logits, gap, direction, loss, weights, ridge)
        if length == 0:
            break
        coefs = coefs + length * direction[0]
        logits = product(coefs)
        n_iter += 1
    coefs = coefs[0, 0] if labels.ndim == 1 else coefs[0].mT.contiguous()
    return coefs, MinimumInfo(relative <= tol, relative, n_iter, product.count)


def _newton_direction(
    product: KernelProduct, root: CurvatureRoot, gap: Tensor, ridge: float, accuracy: float
) -> tuple[Tensor, Tensor]:
    """Return the direction and K times it, with a residual of ``accuracy`` times the gap."""
    # (W K + λ I) d = g,  g = w r(K a) - λ a,  W = M Mᵀ
    # d = (g - M x) / λ,  (λ I + Mᵀ K M) x = Mᵀ K g  by conjugate gradients.
    # If ρ is the residual in x, then M ρ / λ is that in d: no inverse of K or M is needed.
    gap_image = product(gap)
    if not gap_image.isfinite().all():
        raise ValueError("kernel_matrix has non-finite entries.")
    rho = root.apply_transpose(gap_image)
    search = rho
    solution, image = torch.zeros_like(gap), torch.zeros_like(gap)  # x and K M x
    goal = accuracy * ridge * gap.norm()
    for _ in range(MAX_PRODUCTS_PER_STEP):
        if root.apply(rho).norm() <= goal:
            break
        search_image = product(root.apply(search))
        curved = ridge * search + root.apply_transpose(search_image)
        size = rho.square().sum()
        step = size / (search * curved).sum()
        solution = solution + step * search
        image = image + step * search_image
        rho = rho - step * curved
        search = rho + rho.square().sum() / size * search
    return (gap - root.apply(solution)) / ridge, (gap_image - image) / ridge


def _step_length(
    coefs: Tensor,
    logits: Tensor,
    gap: Tensor,
    direction: tuple[Tensor, Tensor],
    loss: CrossEntropy,
    weights: Tensor,
    ridge: float,
) -> float:
    """Return the largest of 1, 1/2, 1/4, ... that lowers the objective enough, or 0."""

    # J(a + s d) <= J(a) + 1e-4 s dJ/ds  (Armijo), dJ/ds = -gᵀ K d, up to rounding of J.
    def objective(length: float) -> float:
        new_logits = logits + length * direction[1]
        penalty = ridge / 2 * ((coefs + length * direction[0]) * new_logits).sum()
        return (loss.value(new_logits)[0] @ weights + penalty).item()

    start = objective(0.0)
    slope = -(gap * direction[1]).sum().item()
    n_terms = max(10, logits.numel())
    slack = n_terms * torch.finfo(logits.dtype).eps * abs(start)
    length = 1.0
    for _ in range(MAX_HALVINGS):
        if objective(length) <= start + 1e-4 * length * slope + slack:
            return length
        length /= 2
    return 0.0
