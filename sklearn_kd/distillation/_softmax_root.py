"""Root of the softmax form of Eq. 3, for K classes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sklearn_kd._logits import centred
from sklearn_kd.distillation._bracketed_newton import (
    MAX_STEPS,
    ROUNDING,
    STEP_TOLERANCE,
    softplus,
)
from sklearn_kd.distillation._softmax_root_nested import nested_softmax_roots

# Temperatures of the joint iteration. It is three to five times faster than the nested one, but
# loses digits as ε T², as the shares of the classes in softmax(z/T) approach one another.
JOINT_TEMPERATURES = (0.05, 100.0)


def softmax_roots(
    z_t: Tensor,  # (n, K)
    y: Tensor,  # (n, K), rows of the simplex
    log_odds: Tensor,  # (n,), log(soft / hard) of the weights of Eq. 3's terms
    temperature: Tensor,  # (n,)
) -> Tensor:
    """Return the root of the K-class form of Eq. 3, (n, K) with rows that sum to zero."""
    columns = z_t, y, log_odds[:, None], temperature[:, None]
    low, high = JOINT_TEMPERATURES
    is_joint = (temperature >= low) & (temperature <= high)
    if is_joint.all():
        return _joint_roots(*columns)
    z = torch.empty_like(z_t)
    for rows, solve in ((is_joint, _joint_roots), (~is_joint, nested_softmax_roots)):
        if rows.any():
            z[rows] = solve(*(column[rows] for column in columns))
    return z


def _joint_roots(z_t: Tensor, y: Tensor, log_odds: Tensor, temperature: Tensor) -> Tensor:
    """Return the root by Newton's method on all logits of a row and their normaliser.

    Given the log-normaliser A = log Σ exp(z/T), in the gauge log Σ exp(z) = 0, each class has
    its own increasing equation

        φ_k = log[soft exp(z_k/T - A) + hard exp(z_k)]
              - log[soft softmax(z_t/T)_k + hard y_k] = 0,

    and A is where Ψ = log Σ exp(z) - log Σ exp(z/T) + A = 0, which increases in A along the
    solutions z(A). A lies between 0 and (1 - 1/T) log K. Newton's method runs on (z, A)
    jointly: the matrix is an arrow, so a step costs O(K). Classes are the first axis here: short
    last axes are slow to broadcast and to sum over.
    """
    z_t, y, log_odds, temperature = (t.T.contiguous() for t in (z_t, y, log_odds, temperature))
    rate = 1 / temperature
    log_q = torch.logaddexp(log_odds + torch.log_softmax(z_t * rate, dim=0), torch.log(y))
    edge = (1 - rate) * math.log(len(z_t))
    low, high = edge.clamp(max=0), edge.clamp(min=0)
    # At T = 1 the root is log_q up to its normaliser.
    z = torch.log_softmax(log_q, dim=0)
    a = torch.logsumexp(z * rate, dim=0, keepdim=True)
    last = torch.full_like(a, math.inf)  # |Ψ| when A last moved
    out = torch.empty_like(z)
    todo = torch.arange(z.shape[1], device=z.device)
    for _ in range(MAX_STEPS):
        tilt = log_odds - a + z * (rate - 1)
        phi = z + softplus(tilt) - log_q
        w = torch.sigmoid(tilt)  # share of the soft term
        slope = w * rate + (1 - w)
        top = z.amax(0, keepdim=True)
        hard_terms, soft_terms = torch.exp(z - top), torch.exp((z - top) * rate)
        hard_sum, soft_sum = hard_terms.sum(0, keepdim=True), soft_terms.sum(0, keepdim=True)
        row = (hard_terms / hard_sum - soft_terms * (rate / soft_sum)) / slope
        behind = row * phi
        psi = top * (1 - rate) + torch.log(hard_sum / soft_sum) + a - behind.sum(0, keepdim=True)
        da = -psi / (1 + (row * w).sum(0, keepdim=True))
        # A moves, and its bracket shrinks, once z(A) is known well enough to trust Ψ's sign.
        known = (behind.abs().sum(0, keepdim=True) <= 0.1 * psi.abs()) & (phi.abs() <= 0.1).all(
            0, keepdim=True
        )
        known |= (phi.abs() <= STEP_TOLERANCE * log_q.abs().clamp(min=1)).all(0, keepdim=True)
        low, high = torch.where(known & (psi < 0), a, low), torch.where(known & (psi > 0), a, high)
        settled = da.abs() <= STEP_TOLERANCE * a.abs().clamp(min=1)
        settled |= psi.abs() <= ROUNDING * (1 + a.abs() + (top * (1 - rate)).abs())
        # Halve the bracket if a step leaves it, or follows one that did not halve Ψ.
        good = (a + da > low) & (a + da < high) & (psi.abs() <= 0.5 * last)
        last = torch.where(known, psi.abs(), last)
        da = torch.where(settled | good, da, (low + high) / 2 - a).where(known, 0.0)
        a = a + da
        # Each term of φ_k alone bounds z_k from above, which stops overshooting.
        bound = torch.minimum((log_q - log_odds + a) / rate, log_q)
        new_z = torch.minimum(z + (w * da - phi) / slope, bound)
        dz, z = new_z - z, new_z
        out[:, todo] = z
        still = (dz.abs() > STEP_TOLERANCE * z.abs().clamp(min=1)).any(0, keepdim=True)
        left = (still | ~settled | ~known)[0].nonzero()[:, 0]
        if not left.numel():
            return centred(out.T.contiguous())
        todo, z, a = todo[left], z[:, left], a[:, left]
        log_q, log_odds, rate = log_q[:, left], log_odds[:, left], rate[:, left]
        low, high, last = low[:, left], high[:, left], last[:, left]
    raise ArithmeticError(
        f"effective_logits did not converge for {z.shape[1]} rows at temperature "
        f"{1 / rate[0, 0].item():.17g}; please report this as a bug."
    )
