"""`Recipe`: its loss, and what it says in the words of toolkits."""

import dataclasses
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy, kl_div

from sklearn_kd import LinearizedKDStudent
from sklearn_kd.distillation import DistillationLoss, Recipe

RATIOS = (0.0, 0.3, 0.9, 1.0)
TEMPERATURES = (0.5, 1.0, 4.0)
SCALINGS = ("none", "squared")


def batch(n_classes, n_rows=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (n_rows,) if n_classes is None else (n_rows, n_classes)
    student = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
    teacher = 3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, n_classes or 2, (n_rows,), generator=generator)
    return student, teacher, labels


def gradient(loss, student, teacher, labels):
    (found,) = torch.autograd.grad(loss(student, teacher, labels), student)
    return found


def function_of(code):
    namespace = {}
    exec(code, namespace)
    return namespace


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("T", TEMPERATURES)
@pytest.mark.parametrize("rho", RATIOS)
class TestGradients:
    """Generated code has the gradient of `DistillationLoss`, times the factor that it names."""

    @pytest.mark.parametrize("n_classes", [None, 2, 5])
    @pytest.mark.parametrize("is_labelled", [True, False])
    def test_torch(self, rho, T, scaling, n_classes, is_labelled):
        recipe = Recipe(rho, T, scaling)
        student, teacher, labels = batch(n_classes)
        if not is_labelled:
            labels[::3] = -1
        code = recipe.as_code("torch", single_logit=n_classes is None)
        loss = function_of(code)["distillation_loss"]
        expected = gradient(recipe.loss(), student, teacher, labels)
        found = gradient(loss, student, teacher, labels)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)

    @pytest.mark.parametrize("n_classes", [2, 5])
    def test_hinton(self, rho, T, scaling, n_classes):
        recipe = Recipe(rho, T, scaling)
        student, teacher, labels = batch(n_classes)
        code = recipe.as_code("hinton")
        found = gradient(function_of(code)["distillation_loss"], student, teacher, labels)
        expected = gradient(recipe.loss(), student, teacher, labels)
        torch.testing.assert_close(found, factor_in(code) * expected, rtol=1e-12, atol=1e-15)

    def test_huggingface(self, rho, T, scaling, monkeypatch):
        recipe = Recipe(rho, T, scaling)
        student, teacher, labels = batch(4)
        code = recipe.as_code("huggingface")
        monkeypatch.setitem(__import__("sys").modules, "transformers", FakeTransformers())
        trainer = function_of(code)["DistillationTrainer"](teacher_model=Model(teacher))

        def loss(student, teacher, labels):
            return trainer.compute_loss(Model(student), {"labels": labels})

        found = gradient(loss, student, teacher, labels)
        expected = gradient(recipe.loss(), student, teacher, labels)
        torch.testing.assert_close(found, factor_in(code) * expected, rtol=1e-12, atol=1e-15)

    def test_torchdistill(self, rho, T, scaling):
        recipe = Recipe(rho, T, scaling)
        student, teacher, labels = batch(4)
        code = recipe.as_code("torchdistill")
        options = kd_loss_of(code)

        def loss(student, teacher, labels):
            """As its documentation has it: alpha of 0 leaves the soft term, without T²."""
            tau, alpha = options["temperature"], options["alpha"]
            soft = kl_div(
                torch.log_softmax(student / tau, 1), torch.softmax(teacher / tau, 1),
                reduction=options["reduction"],
            )  # fmt: skip
            if alpha == 0:
                return soft
            return alpha * cross_entropy(student, labels) + options["beta"] * tau**2 * soft

        found = gradient(loss, student, teacher, labels)
        expected = gradient(recipe.loss(), student, teacher, labels)
        torch.testing.assert_close(found, factor_in(code) * expected, rtol=1e-12, atol=1e-15)


class FakeTransformers:
    class Trainer:
        def __init__(self):
            pass


class Model:
    """What a model of that library is to a loss: logits, and the mean cross-entropy."""

    def __init__(self, logits):
        self.logits = logits

    def eval(self):
        return self

    def __call__(self, labels):
        self.loss = cross_entropy(self.logits, labels)
        return self


def factor_in(code):
    found = re.search(r"this is (\S+) times", code)
    return float(found.group(1)) if found else 1.0


def kd_loss_of(code):
    """Read the numbers and words of the YAML, which is a flat mapping."""
    found = dict(re.findall(r"^    (\w+): ([^#\n]+?) *(?:#.*)?$", code, re.MULTILINE))
    assert set(found) >= {"student_module_path", "teacher_module_io", "temperature", "alpha"}
    return {
        name: value.strip("'") if value.startswith("'") else float(value)
        for name, value in found.items()
    }


def number_in(code, name):
    return float(re.search(rf"^ *{name}[:=]? *=? *(\S+)", code, re.MULTILINE).group(1))


RECIPES = st.builds(Recipe, st.floats(1e-3, 1.0), st.floats(0.05, 50.0), st.sampled_from(SCALINGS))


def plain_ratio(recipe):
    """ρ of the same minimiser without a factor T²."""
    if recipe.temperature_scaling == "none":
        return recipe.soft_ratio
    soft = recipe.soft_ratio * recipe.temperature**2
    return soft / (soft + 1 - recipe.soft_ratio)


class TestRoundTrips:
    @settings(deadline=None)
    @given(RECIPES)
    def test_hinton(self, recipe):
        code = recipe.as_code("hinton")
        back = Recipe.of_toolkit(number_in(code, "alpha"), number_in(code, "temperature"))
        assert back.soft_ratio == pytest.approx(plain_ratio(recipe), rel=1e-12)
        assert back.temperature == recipe.temperature

    @settings(deadline=None)
    @given(RECIPES)
    def test_huggingface(self, recipe):
        code = recipe.as_code("huggingface")
        alpha = number_in(code, "alpha")
        back = Recipe.of_toolkit(1 - alpha, number_in(code, "temperature"))
        # 1 − α has lost the digits of a small soft weight.
        spread = 1e-12 + 2e-16 / min(recipe.weights().soft, 1)
        assert back.soft_ratio == pytest.approx(plain_ratio(recipe), rel=spread)

    @settings(deadline=None)
    @given(RECIPES)
    def test_torchdistill(self, recipe):
        options = kd_loss_of(recipe.as_code("torchdistill"))
        weight = options["beta"] / (options["alpha"] + options["beta"])
        back = Recipe.of_toolkit(weight, options["temperature"])
        assert back.soft_ratio == pytest.approx(plain_ratio(recipe), rel=1e-12)

    @settings(deadline=None)
    @given(RECIPES, st.booleans())
    def test_torch(self, recipe, single_logit):
        code = recipe.as_code("torch", single_logit=single_logit)
        is_scaled = "* T**2" in code
        back = Recipe(
            number_in(code, "rho"), number_in(code, "T"), "squared" if is_scaled else "none"
        )
        assert back == recipe

    def test_hard_labels_alone(self):
        assert Recipe.of_toolkit(0, 3.0) == Recipe(0.0, 3.0)


def test_it_is_the_parameters_of_a_student():
    recipe = Recipe(0.3, 5.0, temperature_scaling="squared")
    params = LinearizedKDStudent(**dataclasses.asdict(recipe)).get_params()
    assert {name: params[name] for name in dataclasses.asdict(recipe)} == dataclasses.asdict(recipe)
    loss = recipe.loss("sum")
    assert isinstance(loss, DistillationLoss)
    assert loss.reduction == "sum"
    assert loss.temperature_scaling == "squared"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1.5, 2.0), "soft_ratio"),
        ((-0.1, 2.0), "soft_ratio"),
        ((0.5, 0.0), "temperature"),
        ((0.5, 2.0, "cubed"), "temperature_scaling"),
    ],
)
def test_parameters_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        Recipe(*arguments)


def test_unknown_targets():
    with pytest.raises(ValueError, match="target"):
        Recipe(0.5, 2.0).as_code("tensorflow")
    with pytest.raises(ValueError, match="single_logit=True with target='hinton'"):
        Recipe(0.5, 2.0).as_code("hinton", single_logit=True)
