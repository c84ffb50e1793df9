"""Eq. 2 as a loss for training loops: values, gradients, recipes of others, rows without labels."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sklearn_kd.distillation import DistillationLoss, effective_logits, equivalent_soft_ratio

RECIPES = [
    {"soft_ratio": rho, "temperature": big_t, "temperature_scaling": scaling}
    for rho in (0.0, 0.3, 1.0)
    for big_t in (1.0, 4.0)
    for scaling in ("none", "squared")
]


@pytest.fixture(params=[1, 2, 5], ids=["log-odds", "two columns", "five classes"])
def batch(request):
    """Logits of student and teacher, and labels, in double precision."""
    n_columns = request.param
    generator = torch.Generator().manual_seed(n_columns)
    shape = (7,) if n_columns == 1 else (7, n_columns)
    z, z_t = (3 * torch.randn(shape, generator=generator).double() for _ in range(2))
    y = torch.randint(max(n_columns, 2), (7,), generator=generator)
    return z.requires_grad_(), z_t, y


def probabilities(logits):
    """Return σ(z) with a column for each class."""
    if logits.ndim == 1:
        logits = torch.stack([torch.zeros_like(logits), logits], dim=1)
    return torch.exp(logits) / torch.exp(logits).sum(dim=1, keepdim=True)


def by_hand(z, z_t, y, soft_ratio, temperature, temperature_scaling):
    """Eq. 2 row by row, from its definition."""
    shares = torch.eye(probabilities(z).shape[1]).double()[y]
    scale = temperature**2 if temperature_scaling == "squared" else 1
    soft = probabilities(z_t / temperature) * probabilities(z / temperature).log()
    hard = shares * probabilities(z).log()
    return -(scale * soft_ratio * soft + (1 - soft_ratio) * hard).sum(dim=1)


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_value_is_eq_2(batch, recipe):
    z, z_t, y = batch
    expected = by_hand(z, z_t, y, **recipe)
    rows = DistillationLoss(**recipe, reduction="none")(z, z_t, y)
    torch.testing.assert_close(rows, expected, rtol=1e-12, atol=1e-12)
    for reduction in ("mean", "sum"):
        value = DistillationLoss(**recipe, reduction=reduction)(z, z_t, y)
        torch.testing.assert_close(value, getattr(expected, reduction)(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_gradient_is_the_formula(batch, recipe):
    # ρ s/T (σ(z/T) - σ(z_t/T)) + (1 - ρ) (σ(z) - y), with s = T² where the soft term is scaled.
    z, z_t, y = batch
    DistillationLoss(**recipe, reduction="sum")(z, z_t, y).backward()
    rho, big_t = recipe["soft_ratio"], recipe["temperature"]
    scale = big_t**2 if recipe["temperature_scaling"] == "squared" else 1
    shares = torch.eye(probabilities(z).shape[1]).double()[y]
    soft = probabilities(z / big_t) - probabilities(z_t / big_t)
    expected = rho * scale / big_t * soft + (1 - rho) * (probabilities(z) - shares)
    if z.ndim == 1:
        expected = expected[:, 1]
    torch.testing.assert_close(z.grad, expected.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("recipe", [r for r in RECIPES if r["soft_ratio"] > 0], ids=str)
def test_gradient_vanishes_at_the_effective_logits(batch, recipe):
    _, z_t, y = batch
    labels = y.numpy().astype(float) if z_t.ndim == 1 else np.eye(z_t.shape[1])[y]
    z_eff = torch.from_numpy(effective_logits(z_t.numpy(), labels, **recipe)).requires_grad_()
    DistillationLoss(**recipe, reduction="sum")(z_eff, z_t, y).backward()
    assert z_eff.grad.abs().max() < 1e-10


@pytest.mark.parametrize("weight", [0.1, 0.5, 1.0])
def test_published_recipe_has_the_same_gradient_up_to_a_factor(weight):
    # a T² KL(σ(z_t/T) || σ(z/T)) + (1 - a) CE, the recipe of most toolkits.
    generator = torch.Generator().manual_seed(0)
    z, z_t = (2 * torch.randn(6, 4, generator=generator).double() for _ in range(2))
    y, big_t = torch.randint(4, (6,), generator=generator), 3.0
    theirs = z.clone().requires_grad_()
    soft = F.kl_div(
        F.log_softmax(theirs / big_t, dim=1), F.softmax(z_t / big_t, dim=1), reduction="batchmean"
    )
    (weight * big_t**2 * soft + (1 - weight) * F.cross_entropy(theirs, y)).backward()
    rho = equivalent_soft_ratio(weight, big_t, temperature_scaling="squared").item()
    ours = z.clone().requires_grad_()
    DistillationLoss(rho, big_t)(ours, z_t, y).backward()
    factor = weight * big_t**2 + 1 - weight
    torch.testing.assert_close(factor * ours.grad, theirs.grad, rtol=1e-11, atol=1e-13)


def test_shares_of_classes_are_mixed_labels(batch):
    z, z_t, y = batch
    loss = DistillationLoss(0.3, 2.0, reduction="none")
    n_classes = probabilities(z).shape[1]
    other = (y + 1) % n_classes
    expected = 0.75 * loss(z, z_t, y) + 0.25 * loss(z, z_t, other)
    if z.ndim == 1:
        shares = 0.75 * y + 0.25 * other
    else:
        shares = 0.75 * F.one_hot(y, n_classes) + 0.25 * F.one_hot(other, n_classes)
    torch.testing.assert_close(loss(z, z_t, shares.double()), expected)


@pytest.mark.parametrize("of_shares", [False, True])
def test_rows_without_a_label_have_the_soft_term_alone(batch, of_shares):
    z, z_t, y = batch
    without = torch.tensor([True, False] * 3 + [True])
    labels = torch.where(without, -1, y)
    if of_shares and z.ndim == 2:
        shares = F.one_hot(y, z.shape[1]).double()
        labels = torch.where(without[:, None], -1.0, shares)
    rows = DistillationLoss(0.3, 2.0, reduction="none")(z, z_t, labels)
    mixed, soft = (DistillationLoss(rho, 2.0, reduction="none")(z, z_t, y) for rho in (0.3, 1.0))
    torch.testing.assert_close(rows, torch.where(without, soft, mixed))
    rows.sum().backward()
    assert z.grad.isfinite().all()


def test_no_gradient_reaches_the_teacher(batch):
    z, z_t, y = batch
    z_t.requires_grad_()
    DistillationLoss()(z, z_t, y).backward()
    assert z_t.grad is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(dtype):
    # In float16 the exponential of 12 is infinite.
    z = torch.tensor([[12.0, -12.0], [30.0, 0.0]], dtype=dtype, requires_grad=True)
    z_t, y = torch.tensor([[10.0, -9.0], [20.0, 1.0]], dtype=dtype), torch.tensor([1, 0])
    value = DistillationLoss(0.5, 1.0)(z, z_t, y)
    expected = DistillationLoss(0.5, 1.0)(z.double(), z_t.double(), y)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-6)
    value.backward()
    assert z.grad.dtype == dtype


def test_saturated_logits_keep_their_loss():
    z = torch.tensor([800.0, -800.0], dtype=torch.float64, requires_grad=True)
    rows = DistillationLoss(0.5, 1.0, reduction="none")(z, -z.detach(), torch.tensor([0, 1]))
    np.testing.assert_allclose(rows.detach(), [800.0, 800.0])


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"soft_ratio": -0.1}, "soft_ratio"),
        ({"soft_ratio": 1.1}, "soft_ratio"),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature_scaling": "cubed"}, "temperature_scaling"),
        ({"reduction": "batchmean"}, "reduction"),
    ],
    ids=str,
)
def test_parameters_are_checked(parameters, message):
    with pytest.raises(ValueError, match=message):
        DistillationLoss(**parameters)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((4, 1), (4, 1), (4,)), "squeeze"),
        (((4, 3), (4, 2), (4,)), "teacher_logits has shape"),
        (((4, 3), (4, 3), (5,)), "y has shape"),
        (((4,), (4,), (4, 2)), "y has shape"),
    ],
    ids=str,
)
def test_shapes_are_checked(shapes, message):
    student, teacher, labels = shapes
    with pytest.raises(ValueError, match=message):
        DistillationLoss()(torch.zeros(student), torch.zeros(teacher), torch.zeros(labels).long())


def test_labels_in_floating_point_are_no_class_indices():
    with pytest.raises(ValueError, match=r"y\.long\(\)"):
        DistillationLoss()(torch.zeros(4, 3), torch.zeros(4, 3), torch.zeros(4))
