"""Refinement: a Cholesky factor in float32, and an iteration to float64 accuracy."""

from __future__ import annotations

from sklearn_kd._memory import WORKSPACE_BYTES


def refinement_bytes(n_rows: int, n_features: int, n_targets: int) -> int:
    """Return the peak bytes of the factor and the iteration, from shapes alone.

    The factor; of the targets and the iteration what `block_pcg` takes; the rows in float64 and
    float32, and the tiles of the kernel.
    """
    vectors = 8 * n_rows * (18 * n_targets + 2 * n_features)
    return 4 * n_rows**2 + vectors + 3 * WORKSPACE_BYTES
