"""Loss derivatives against automatic differentiation."""

import pytest
import torch

from sklearn_kd.training._function_space import CurvatureRoot, KernelProduct, residual

WEIGHTS = torch.tensor([0.5, 2.0, 1.0, 0.25], dtype=torch.float64)


def problem(n_classes):
    generator = torch.Generator().manual_seed(0)
    shape = (4,) if n_classes == 2 else (4, n_classes)
    logits = 3 * torch.randn(shape, dtype=torch.float64, generator=generator)
    labels = torch.rand(shape, dtype=torch.float64, generator=generator)
    return logits, labels if n_classes == 2 else labels / labels.sum(dim=1, keepdim=True)


def objective(logits, targets, loss):
    if loss == "squared_error":
        losses = (targets - logits) ** 2 / 2
        losses = losses if logits.ndim == 1 else losses.sum(dim=1)
    elif logits.ndim == 1:
        losses = torch.nn.functional.binary_cross_entropy_with_logits(
            logits, targets, reduction="none"
        )
    else:
        losses = -(targets * logits).sum(dim=1) + torch.logsumexp(logits, dim=1)
    return (WEIGHTS * losses).sum()


@pytest.mark.parametrize("loss", ["log_loss", "squared_error"])
@pytest.mark.parametrize("n_classes", [2, 3, 5])
def test_residual_is_minus_the_gradient(loss, n_classes):
    logits, labels = problem(n_classes)
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(objective(logits, labels, loss), logits)
    weights = WEIGHTS if logits.ndim == 1 else WEIGHTS[:, None]
    torch.testing.assert_close(weights * residual(logits, labels, loss), -gradient)


@pytest.mark.parametrize("loss", ["log_loss", "squared_error"])
@pytest.mark.parametrize("n_classes", [2, 3, 5])
def test_curvature_is_the_hessian(loss, n_classes):
    logits, labels = problem(n_classes)
    hessian = torch.autograd.functional.hessian(lambda f: objective(f, labels, loss), logits)
    root = CurvatureRoot(logits, WEIGHTS, loss)
    unit = torch.eye(logits.numel(), dtype=torch.float64)
    columns = [root.curvature(e.view_as(logits)).flatten() for e in unit]
    torch.testing.assert_close(torch.stack(columns, dim=1), hessian.reshape(unit.shape))


@pytest.mark.parametrize("n_classes", [2, 4])
def test_apply_transpose_is_the_adjoint(n_classes):
    logits, x = problem(n_classes)
    root = CurvatureRoot(logits, WEIGHTS, "log_loss")
    left = (root.apply(x) * logits).sum()
    torch.testing.assert_close(left, (x * root.apply_transpose(logits)).sum())


def test_residual_of_a_fitted_hard_label_keeps_its_digits():
    fitted = torch.tensor([50.0], dtype=torch.float64)
    assert residual(fitted, torch.ones(1).double(), "log_loss").item() == pytest.approx(
        1.9287498479639178e-22, rel=1e-14
    )
    outputs = torch.tensor([[50.0, 0.0, 0.0]], dtype=torch.float64)
    label = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
    expected = [3.8574996959278356e-22, -1.9287498479639178e-22, -1.9287498479639178e-22]
    assert residual(outputs, label, "log_loss")[0].tolist() == pytest.approx(expected, rel=1e-14)


def test_products_are_counted():
    product = KernelProduct(torch.eye(2))
    product(product(torch.ones(2)))
    assert product.count == 2
