"""The texts for other toolkits: run, differentiated beside Eq. 2, and read back."""

import ast
import itertools
import re
import sys
from dataclasses import asdict
from types import SimpleNamespace

import mpmath
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from sklearn_kd.distillation import Recipe

properties = settings(deadline=None, derandomize=True, max_examples=150)

TARGETS = ["torch", "torchdistill", "huggingface", "hinton"]
RECIPES = [
    Recipe(rho, big_t, temperature_scaling=scaling)
    for rho, big_t, scaling in itertools.product(
        (0.0, 0.3, 0.9, 1.0), (0.5, 1.0, 4.0), ("none", "squared")
    )
]


# What the toolkits do with a text


def function_of(text):
    """Return the function that the text defines, run without anything of this library."""
    assert "sklearn_kd" not in text
    names = {}
    exec(text, names)
    return names["distillation_loss"]


class StandInTrainer:
    """What the text needs of the Trainer of transformers."""

    def __init__(self, model, args):
        self.model, self.args = model, args
        self.model_accepts_loss_kwargs = True


class FixedLogits(torch.nn.Module):
    """A model of transformers whose answer does not depend on its input."""

    def __init__(self, logits):
        super().__init__()
        self.logits = torch.nn.Parameter(logits.clone())

    def forward(self, labels, input_ids):
        return SimpleNamespace(logits=self.logits)


def loss_of_trainer(text, z, z_t, y, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", SimpleNamespace(Trainer=StandInTrainer))
    names = {}
    exec(text, names)
    student, teacher = FixedLogits(z), FixedLogits(z_t)
    trainer = names["DistillationTrainer"](
        student, SimpleNamespace(device="cpu"), teacher_model=teacher
    )
    assert not trainer.teacher.training
    inputs = {"input_ids": torch.zeros(len(y)), "labels": y}
    loss = trainer.compute_loss(student, inputs, num_items_in_batch=len(y))
    again, outputs = trainer.compute_loss(student, inputs, return_outputs=True)
    assert again == loss
    assert outputs.logits is student.logits
    return loss, student.logits


def kd_loss(config, z, z_t, y):
    """The documented loss of torchdistill: α CE + β τ² KL, and KL alone where α is 0."""
    assert set(config) == {"criterion"}
    assert config["criterion"]["key"] == "WeightedSumLoss"
    (term,) = config["criterion"]["kwargs"]["sub_terms"].values()
    assert term["criterion"]["key"] == "KDLoss"
    options = term["criterion"]["kwargs"]
    assert options["reduction"] == "batchmean"
    for who in ("student", "teacher"):
        assert options[f"{who}_module_path"] == "."
        assert options[f"{who}_module_io"] == "output"
    tau, alpha, beta = (options[name] for name in ("temperature", "alpha", "beta"))
    q, log_p = torch.softmax(z_t / tau, dim=1), torch.log_softmax(z / tau, dim=1)
    divergence = (q * (q.log() - log_p)).sum() / len(z)
    if alpha == 0:
        return term["weight"] * divergence
    hard = -torch.log_softmax(z, dim=1)[torch.arange(len(z)), y].mean()
    return term["weight"] * (alpha * hard + beta * tau**2 * divergence)


def gradient_of_text(target, text, z, z_t, y, monkeypatch):
    z = z.clone().requires_grad_()
    if target == "huggingface":
        loss, z = loss_of_trainer(text, z.detach(), z_t, y, monkeypatch)
    elif target == "torchdistill":
        loss = kd_loss(yaml.safe_load(text), z, z_t, y)
    else:
        loss = function_of(text)(z, z_t, y)
    loss.backward()
    return z.grad


def gradient_of_eq_2(recipe, z, z_t, y):
    z = z.clone().requires_grad_()
    recipe.loss()(z, z_t, y).backward()
    return z.grad


def batch(n_rows, n_columns, seed=0):
    """Logits of student and teacher, and labels; one column is the log-odds (n,)."""
    generator = torch.Generator().manual_seed(seed)
    shape = (n_rows,) if n_columns == 1 else (n_rows, n_columns)
    z, z_t = (3 * torch.randn(shape, generator=generator).double() for _ in range(2))
    return z, z_t, torch.randint(max(n_columns, 2), (n_rows,), generator=generator)


# The texts are Eq. 2


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: "-".join(map(str, asdict(r).values())))
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("n_columns", [2, 5])
def test_gradient_of_the_text_is_that_of_eq_2(target, recipe, n_columns, monkeypatch):
    for n_rows in (1, 7, 13):
        z, z_t, y = batch(n_rows, n_columns)
        text = recipe.as_code(target, n_classes=n_columns)
        gradient = gradient_of_text(target, text, z, z_t, y, monkeypatch)
        expected = recipe.loss_scale(target) * gradient_of_eq_2(recipe, z, z_t, y)
        torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: "-".join(map(str, asdict(r).values())))
@pytest.mark.parametrize("target", ["torch", "hinton"])
@pytest.mark.parametrize("as_column", [False, True])
def test_one_logit_a_row_is_two_classes(target, recipe, as_column):
    z, z_t, y = batch(7, 1)
    mine = (z[:, None] if as_column else z).clone().requires_grad_()
    loss = function_of(recipe.as_code(target, n_classes=2))
    loss(mine, z_t[:, None] if as_column else z_t, y).backward()
    expected = recipe.loss_scale(target) * gradient_of_eq_2(recipe, z, z_t, y)
    torch.testing.assert_close(mine.grad.reshape(-1), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: "-".join(map(str, asdict(r).values())))
def test_plain_torch_learns_rows_without_a_label_from_the_teacher(recipe):
    z, z_t, y = batch(7, 5)
    y[[1, 4]] = -1
    gradient = gradient_of_text("torch", recipe.as_code("torch"), z, z_t, y, None)
    expected = gradient_of_eq_2(recipe, z, z_t, y)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("target", ["torch", "hinton"])
def test_teacher_gets_no_gradient(target):
    z, z_t, y = batch(4, 3)
    z.requires_grad_()
    z_t.requires_grad_()
    function_of(Recipe(0.5, 2.0).as_code(target))(z, z_t, y).backward()
    assert z_t.grad is None


def test_trainer_divides_the_loss_of_accumulated_batches(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", SimpleNamespace(Trainer=StandInTrainer))
    names = {}
    exec(Recipe(0.5, 2.0).as_code("huggingface"), names)
    z, z_t, _ = batch(4, 3)
    trainer = names["DistillationTrainer"](
        FixedLogits(z), SimpleNamespace(device="cpu"), teacher_model=FixedLogits(z_t)
    )
    assert trainer.model_accepts_loss_kwargs is False


# Read back


def numbers_in(text):
    """Return the numbers that the text assigns, as its reader sees them."""
    if text.split("\n")[1].startswith("criterion"):
        (term,) = yaml.safe_load(text)["criterion"]["kwargs"]["sub_terms"].values()
        return term["criterion"]["kwargs"] | {"weight": term["weight"]}
    found = {}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple):
            names = [target.id for target in node.targets[0].elts]
            if all(isinstance(value, ast.Constant) for value in node.value.elts):
                found.update(zip(names, ast.literal_eval(node.value), strict=True))
    return found


def read_back(target, text):
    """Return the recipe of Eq. 2, by the loss that the toolkit is known to have."""
    numbers = numbers_in(text)
    if target == "torch":
        return Recipe(numbers["soft_ratio"], numbers["T"])
    if target == "torchdistill":
        weight = numbers["beta"] / (numbers["beta"] + numbers["alpha"])
        return Recipe.from_toolkit(weight, numbers["temperature"], temperature_scaling="squared")
    weight = numbers["alpha"] if target == "hinton" else 1 - numbers["alpha"]
    return Recipe.from_toolkit(weight, numbers["T"], temperature_scaling="squared")


@pytest.mark.parametrize("target", TARGETS)
@properties
@given(
    soft_ratio=st.floats(0.05, 1 - 1e-9) | st.sampled_from([0.0, 1.0]),
    temperature=st.floats(0.05, 10),
)
def test_text_reads_back_as_the_recipe(target, soft_ratio, temperature):
    text = Recipe(soft_ratio, temperature).as_code(target)
    recipe = read_back(target, text)
    assert recipe.temperature == temperature
    assert recipe.soft_ratio == pytest.approx(soft_ratio, rel=1e-12, abs=0)


@pytest.mark.parametrize("target", ["torchdistill", "huggingface", "hinton"])
@properties
@given(weight=st.floats(0.01, 0.99), temperature=st.floats(0.1, 10))
def test_recipe_of_a_toolkit_comes_back_as_its_numbers(target, weight, temperature):
    recipe = Recipe.from_toolkit(weight, temperature, temperature_scaling="squared")
    numbers = numbers_in(recipe.as_code(target))
    # At T = 10 the hard labels of weight 0.01 are 1e-4 of ρ's 1, which has 16 digits.
    if target == "torchdistill":
        assert numbers["beta"] / numbers["alpha"] == pytest.approx(weight / (1 - weight), rel=1e-9)
    else:
        alpha = weight if target == "hinton" else 1 - weight
        assert numbers["alpha"] == pytest.approx(alpha, rel=1e-9)
        assert numbers["T"] == temperature


@pytest.mark.parametrize("target", TARGETS)
@properties
@given(
    soft_ratio=st.floats(1e-9, 1 - 1e-9) | st.sampled_from([0.0, 1.0]),
    temperature=st.floats(1e-3, 1e3),
    scaling=st.sampled_from(["none", "squared"]),
)
def test_weights_in_the_text_are_those_of_eq_2_up_to_the_factor(
    target, soft_ratio, temperature, scaling
):
    recipe = Recipe(soft_ratio, temperature, temperature_scaling=scaling)
    text = recipe.as_code(target)
    square = mpmath.mpf(temperature) ** 2
    exact = {"soft": mpmath.mpf(soft_ratio), "hard": 1 - mpmath.mpf(soft_ratio)}
    exact["soft"] *= square if scaling == "squared" else 1
    numbers = {k: mpmath.mpf(v) for k, v in numbers_in(text).items() if isinstance(v, float)}
    if target == "torch":
        found = {"soft": numbers["soft_ratio"], "hard": 1 - numbers["soft_ratio"]}
        assert ("T**2" in text) == (scaling == "squared")
        found["soft"] *= square if scaling == "squared" else 1
    elif target == "torchdistill":
        found = {"soft": numbers["beta"] * square, "hard": numbers["alpha"]}
        if numbers["alpha"] == 0:
            found["soft"] = numbers["weight"]
    else:
        alpha = numbers["alpha"] if target == "hinton" else 1 - numbers["alpha"]
        found = {"soft": alpha * square, "hard": 1 - alpha}
    scale = recipe.loss_scale(target)
    # One number α holds both weights only as far as 1 - α has digits.
    for term in ("soft", "hard"):
        assert abs(found[term] - scale * exact[term]) <= 1e-14 * (square + 1 + scale * exact[term])


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: "-".join(map(str, asdict(r).values())))
def test_first_line_says_the_recipe_and_the_factor(target, recipe):
    first = recipe.as_code(target).split("\n")[0]
    described, factor = re.match(r"# (Recipe\(.*?\)) x (\S+): ", first).groups()
    assert eval(described) == recipe
    assert float(factor) == pytest.approx(recipe.loss_scale(target), rel=1e-5)
    assert ("divide lr" in first) == (recipe.loss_scale(target) != 1)


def test_steps_of_sgd_are_the_same_with_the_rate_and_decay_that_the_text_names():
    recipe, (z, z_t, y), lr, decay = Recipe(0.9, 4.0), batch(7, 3), 0.1, 0.02
    scale = recipe.loss_scale("hinton")
    assert scale == pytest.approx(6.4)
    ends = []
    for loss, rate, shrink in (
        (recipe.loss(), lr, decay),
        (function_of(recipe.as_code("hinton")), lr / scale, scale * decay),
    ):
        weights = torch.nn.Parameter(z.clone())
        optimizer = torch.optim.SGD([weights], lr=rate, momentum=0.9, weight_decay=shrink)
        for _ in range(20):
            optimizer.zero_grad()
            loss(weights, z_t, y).backward()
            optimizer.step()
        ends.append(weights.detach())
    torch.testing.assert_close(*ends, rtol=1e-12, atol=1e-14)
    assert not torch.allclose(ends[0], z)


def test_numbers_with_an_exponent_are_numbers_in_yaml():
    numbers = numbers_in(Recipe(1 - 1e-5, 2.0**-20).as_code("torchdistill"))
    for name in ("temperature", "alpha", "beta", "weight"):
        assert isinstance(numbers[name], float)
    assert _yaml_of(1e-5) == 1e-5
    assert _yaml_of(1e22) == 1e22


def _yaml_of(soft_ratio_or_temperature):
    value = soft_ratio_or_temperature
    recipe = Recipe(value, 1.0) if value <= 1 else Recipe(0.5, value)
    numbers = numbers_in(recipe.as_code("torchdistill"))
    return numbers["beta"] if value <= 1 else numbers["temperature"]


# What cannot be written


@pytest.mark.parametrize(
    ("recipe", "target", "message"),
    [
        (
            Recipe(0.5, 1e-160),
            "hinton",
            r"temperature=1e-160 cannot be written for target='hinton'",
        ),
        (Recipe(0.5, 1e200), "torchdistill", r"temperature=1e\+200 cannot be written"),
        (Recipe(0.5, 1e200, temperature_scaling="squared"), "torch", "which squares it"),
        (Recipe(0.5, 1e-9), "hinton", "soft_ratio=0.5 cannot be written .*target='torch'"),
        (Recipe(0.5, 1e9), "huggingface", "soft_ratio=0.5 cannot be written .*target='torch'"),
        (Recipe(1e-300, 1e20), "torchdistill", "soft_ratio=1e-300 cannot be written"),
    ],
    ids=str,
)
def test_recipe_that_loses_a_term_is_refused(recipe, target, message):
    with pytest.raises(ValueError, match=message):
        recipe.as_code(target)


def test_plain_torch_holds_any_temperature():
    z, z_t, y = batch(3, 4)
    recipe = Recipe(0.5, 1e200)
    gradient = gradient_of_text("torch", recipe.as_code("torch"), z, z_t, y, None)
    torch.testing.assert_close(gradient, gradient_of_eq_2(recipe, z, z_t, y), rtol=1e-12, atol=0)


@pytest.mark.parametrize("call", [Recipe.as_code, Recipe.loss_scale])
def test_unknown_target_is_named(call):
    with pytest.raises(ValueError, match=r"target must be one of \('torch', .*; got 'keras'"):
        call(Recipe(0.5, 2.0), "keras")


@pytest.mark.parametrize("n_classes", [1, 2.5])
def test_bad_n_classes_is_named(n_classes):
    with pytest.raises(ValueError, match="n_classes, the number of classes, must be an integer"):
        Recipe(0.5, 2.0).as_code("torch", n_classes=n_classes)


def test_rows_without_a_label_are_refused_by_the_text_of_hinton():
    z, z_t, y = batch(3, 4)
    y[0] = -1
    with pytest.raises(IndexError, match="-1 is out of bounds"):
        function_of(Recipe(0.5, 2.0).as_code("hinton"))(z, z_t, y)
    assert F.cross_entropy(z, y, ignore_index=-1).isfinite()
