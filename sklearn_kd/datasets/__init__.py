"""Tasks whose true logits are known everywhere: a mixture of Gaussians and two references."""

from sklearn_kd.datasets._gaussian_mixture import (
    make_gaussian_mixture_logits,
    make_random_logits,
    make_zero_logits,
)

__all__ = ["make_gaussian_mixture_logits", "make_random_logits", "make_zero_logits"]
