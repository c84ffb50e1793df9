"""Loss derivatives against automatic differentiation."""

import pytest
import torch
from torch.nn import functional as F

from sklearn_kd.training._function_space import CrossEntropy, KernelProduct, SquaredError, Term

N_RUNS, N_ROWS = 3, 4
WEIGHTS = torch.tensor([[0.5, 2.0, 1.0, 0.25], [1.0] * 4, [0.0, 1.0, 3.0, 2.0]]).double()
SOFT_WEIGHT = torch.tensor([0.2, 1.0, 0.7]).double()[:, None, None]
TEMPERATURE = torch.tensor([1.0, 4.0, 0.5]).double()[:, None, None]
LOSSES = ["log_loss", "squared_error", "distillation"]


def problem(n_columns):
    """Return logits (B, C, n) and shares of hard and of soft labels."""
    generator = torch.Generator().manual_seed(0)
    shape = (N_RUNS, n_columns, N_ROWS)
    logits = 3 * torch.randn(shape, dtype=torch.float64, generator=generator)
    shares = torch.rand((2, *shape), dtype=torch.float64, generator=generator)
    if n_columns > 1:
        shares = shares / shares.sum(dim=2, keepdim=True)
    return logits, *shares


def loss_of(name, hard, soft):
    if name == "squared_error":
        return SquaredError(hard)
    if name == "log_loss":
        return CrossEntropy([Term.of_labels(hard)])
    one = torch.ones_like(SOFT_WEIGHT)
    return CrossEntropy(
        [
            Term(soft, 1 - soft, SOFT_WEIGHT, TEMPERATURE),
            Term(hard, 1 - hard, 1 - SOFT_WEIGHT, one),
        ]
    )


def cross_entropy(logits, shares):
    """Return the cross-entropy of every run and row by torch's own functions."""
    if logits.shape[1] == 1:
        entropy = F.binary_cross_entropy_with_logits(logits, shares, reduction="none")
        return entropy[:, 0]
    return -(shares * logits).sum(dim=1) + torch.logsumexp(logits, dim=1)


def value(name, logits, hard, soft):
    if name == "squared_error":
        return ((hard - logits) ** 2 / 2).sum(dim=1)
    if name == "log_loss":
        return cross_entropy(logits, hard)
    rho = SOFT_WEIGHT[:, 0]
    return rho * cross_entropy(logits / TEMPERATURE, soft) + (1 - rho) * cross_entropy(logits, hard)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("n_columns", [1, 2, 5])
def test_residual_is_minus_the_gradient(loss, n_columns):
    logits, *shares = problem(n_columns)
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(value(loss, logits, *shares).sum(), logits)
    torch.testing.assert_close(loss_of(loss, *shares).residual(logits), -gradient)


@pytest.mark.parametrize("loss", ["log_loss", "distillation"])
@pytest.mark.parametrize("n_columns", [1, 2, 5])
def test_value(loss, n_columns):
    logits, *shares = problem(n_columns)
    expected = value(loss, logits, *shares)
    torch.testing.assert_close(loss_of(loss, *shares).value(logits), expected)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("n_columns", [1, 2, 5])
def test_curvature_is_the_hessian(loss, n_columns):
    logits, *shares = problem(n_columns)

    def total(f):
        return (WEIGHTS * value(loss, f, *shares)).sum()

    hessian = torch.autograd.functional.hessian(total, logits)
    root = loss_of(loss, *shares).curvature_root(logits, WEIGHTS)
    unit = torch.eye(logits.numel(), dtype=torch.float64)
    columns = [root.curvature(e.view_as(logits)).flatten() for e in unit]
    torch.testing.assert_close(torch.stack(columns, dim=1), hessian.reshape(unit.shape))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("n_columns", [1, 4])
def test_apply_transpose_is_the_adjoint(loss, n_columns):
    logits, *shares = problem(n_columns)
    root = loss_of(loss, *shares).curvature_root(logits, WEIGHTS)
    y = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1)).double()
    image = root.apply_transpose(y)
    x = torch.randn(image.shape, generator=torch.Generator().manual_seed(2)).double()
    torch.testing.assert_close((root.apply(x) * y).sum(), (x * image).sum())


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("n_columns", [1, 3])
def test_some_runs_are_as_among_all(loss, n_columns):
    logits, *shares = problem(n_columns)
    own, some = loss_of(loss, *shares), torch.tensor([2, 0])
    torch.testing.assert_close(own.of(some).residual(logits[some]), own.residual(logits)[some])
    root = own.curvature_root(logits, WEIGHTS)
    torch.testing.assert_close(root.of(some).curvature(logits[some]), root.curvature(logits)[some])
    torch.testing.assert_close(root.of(some).largest_squared, root.largest_squared[some])


def test_training_never_ends_where_all_terms_agree_on_a_class():
    hard = torch.tensor([[[1.0, 0.0]], [[1.0, 0.5]], [[0.5, 0.5]]]).double()
    assert CrossEntropy([Term.of_labels(hard)]).never_ends.tolist() == [True, True, False]
    soft = torch.tensor([[[1.0, 0.0]], [[0.9, 0.2]], [[0.9, 0.2]]]).double()
    weight = torch.tensor([0.5, 0.5, 0.0]).double()[:, None, None]
    terms = [Term(soft, 1 - soft, weight, TEMPERATURE), Term.of_labels(hard)]
    assert CrossEntropy(terms).never_ends.tolist() == [True, False, False]
    assert not SquaredError(hard).never_ends.any()


def test_residual_of_a_fitted_hard_label_keeps_its_digits():
    def residual(logits, labels):
        return CrossEntropy([Term.of_labels(labels[None].double())]).residual(logits[None].double())

    fitted = residual(torch.tensor([[50.0]]), torch.ones(1, 1))
    assert fitted.item() == pytest.approx(1.9287498479639178e-22, rel=1e-14)
    outputs, label = torch.tensor([[50.0], [0.0], [0.0]]), torch.tensor([[1.0], [0.0], [0.0]])
    expected = [3.8574996959278356e-22, -1.9287498479639178e-22, -1.9287498479639178e-22]
    assert residual(outputs, label).flatten().tolist() == pytest.approx(expected, rel=1e-14)


def test_products_are_counted():
    product = KernelProduct(torch.eye(2))
    product(product(torch.ones(1, 1, 2)))
    assert product.count == 2
