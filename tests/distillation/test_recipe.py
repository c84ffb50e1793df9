"""A recipe as a value: its parameters, its loss, and its way back from toolkits."""

from dataclasses import FrozenInstanceError, asdict, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sklearn_kd import LinearizedKDStudent, TorchStudent
from sklearn_kd.distillation import DistillationLoss, Recipe, effective_logits, toolkit_weight

properties = settings(deadline=None, derandomize=True, max_examples=200)


def test_parameters_are_those_of_students_and_losses():
    recipe = Recipe(0.3, 4.0, temperature_scaling="squared")
    for estimator in (
        LinearizedKDStudent(**asdict(recipe)),
        TorchStudent(torch.nn.Linear(2, 1)).set_params(**asdict(recipe)),
    ):
        parameters = estimator.get_params()
        assert {name: parameters[name] for name in asdict(recipe)} == asdict(recipe)
    assert str(recipe.loss()) == str(DistillationLoss(0.3, 4.0, temperature_scaling="squared"))
    assert recipe.loss(reduction="sum").reduction == "sum"


def test_two_spellings_of_a_recipe_are_equal_and_it_stays_as_it_is():
    recipe = Recipe(np.float64(0.5), torch.tensor(2))
    assert recipe == Recipe(0.5, 2.0)
    assert {recipe: "kept"}[Recipe(0.5, 2.0)] == "kept"
    assert repr(recipe) == "Recipe(soft_ratio=0.5, temperature=2.0, temperature_scaling='none')"
    assert eval(repr(recipe)) == recipe
    assert replace(recipe, soft_ratio=0).soft_ratio == 0
    with pytest.raises(FrozenInstanceError):
        recipe.soft_ratio = 0.7
    with pytest.raises(TypeError):
        Recipe(0.5, 2.0, "squared")  # by name only, as everywhere


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ((-0.1, 1.0), r"soft_ratio must be in \[0, 1\]; got -0.1"),
        ((1.5, 1.0), r"soft_ratio must be in \[0, 1\]; got 1.5"),
        ((np.nan, 1.0), "soft_ratio must be one finite number"),
        (([0.5, 0.6], 1.0), "soft_ratio must be one finite number"),
        ((0.5, 0.0), "temperature must be positive and finite; got 0"),
        ((0.0, -1.0), "temperature must be positive and finite; got -1"),
        ((0.5, [1.0, 2.0]), "temperature must be one finite number"),
        ((0.5, 1e-301), r"temperature must be in \[1e-300, 1e300\]"),
    ],
    ids=str,
)
def test_bad_numbers_are_named(parameters, message):
    with pytest.raises(ValueError, match=message):
        Recipe(*parameters)


def test_bad_words_are_named():
    with pytest.raises(ValueError, match=r"temperature_scaling must be one of .*; got True"):
        Recipe(0.5, 1.0, temperature_scaling=True)
    with pytest.raises(TypeError, match=r"soft_ratio must be a number .*; got 'half'"):
        Recipe("half", 1.0)
    with pytest.raises(ValueError, match=r"reduction must be one of .*; got 'batchmean'"):
        Recipe(0.5, 1.0).loss("batchmean")


# Back from toolkits


@pytest.mark.parametrize("scaling", ["none", "squared"])
@pytest.mark.parametrize("reduction", ["batchmean", "mean"])
@properties
@given(soft_ratio=st.floats(1e-6, 1), temperature=st.floats(0.05, 50))
def test_way_to_a_toolkit_and_back(soft_ratio, temperature, scaling, reduction):
    options = {"temperature_scaling": scaling, "reduction": reduction, "n_classes": 7}
    weight = toolkit_weight(soft_ratio, temperature, **options)
    recipe = Recipe.from_toolkit(weight, temperature, **options)
    assert recipe == Recipe(recipe.soft_ratio, temperature)
    assert recipe.soft_ratio == pytest.approx(soft_ratio, rel=1e-12, abs=0)


def test_recipe_of_a_toolkit_has_the_minimiser_of_its_loss():
    z_t = np.array([-2.0, 0.3, 1.0])
    recipe = Recipe.from_toolkit(0.4, 3.0, temperature_scaling="squared")
    theirs = {"soft_ratio": 0.4, "temperature": 3.0, "temperature_scaling": "squared"}
    np.testing.assert_allclose(
        effective_logits(z_t, 1, **asdict(recipe)), effective_logits(z_t, 1, **theirs), rtol=1e-10
    )


def test_weight_of_zero_is_hard_labels_alone():
    recipe = Recipe.from_toolkit(0, 3.0, temperature_scaling="squared")
    assert recipe == Recipe(0.0, 3.0)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"weight": -0.1}, "weight must be in"),
        ({"weight": 1.1}, "weight must be in"),
        ({"weight": [0.5, 0.6]}, "weight must be one finite number"),
        ({"weight": 0.0, "temperature": -1.0}, "temperature must be positive"),
        ({"weight": 0.0, "temperature_scaling": "T2"}, "temperature_scaling must be one of"),
        ({"weight": 0.0, "reduction": "mean"}, "n_classes must be the number of classes"),
        ({"temperature": [1.0, 2.0]}, "temperature must be one finite number"),
    ],
    ids=str,
)
def test_bad_recipes_of_toolkits_are_named(changed, message):
    arguments = {"weight": 0.5, "temperature": 2.0, "temperature_scaling": "squared"} | changed
    with pytest.raises(ValueError, match=message):
        Recipe.from_toolkit(**arguments)
