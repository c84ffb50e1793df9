"""The surrogates of `surrogate_choice.py`: what the closed form is given, and its scores.

=======================  ============================================================  ===========
name                     kernel and start                                              training
=======================  ============================================================  ===========
infinite width           `NTK` of the network's depth, from 0                          converged
own kernel               `EmpiricalNTK` of the network at its random weights           converged
own kernel, finite time  the same                                                      stops
pilots                   mean `EmpiricalNTK` of three networks (one where it is slow)  converged
                         after a few epochs at ρ = 1
pilots, finite time      the same                                                      stops
=======================  ============================================================  ===========

Converged students are scored by leave-one-out, those that stop by five folds: on the training rows
and labels alone. For comparison each is scored on test rows with true labels too.

The own kernel's students stop at learning rate × steps / (1 − momentum), summed over the schedule.
Those of pilots are `LinearizedKDStudentCV.for_network`: they stop where they have the training loss
of one network of the cell ρ = 0.3, T = 3. Where networks stop early, six times up to that are
searched, and a cell has the one of its best held-out log loss. Adam's steps have no time, so that
there the own kernel's students converge.
"""

import math
import time
import warnings

import numpy as np
import torch
from problems import CELLS, TEMPERATURES
from skorch.callbacks import LRScheduler

from sklearn_kd import LinearizedKDStudentCV, TorchStudent
from sklearn_kd.kernels import NTK, EmpiricalNTK
from sklearn_kd.training import stopping_time_of

SURROGATES = [
    "infinite width",
    "own kernel",
    "own kernel, finite time",
    "pilots",
    "pilots, finite time",
]
MATCHED = (0.3, 3.0)  # the cell whose network the stopping time of pilots is matched to
N_TIMES = 6  # where networks stop early
EARLIEST = 300  # the first of these times is the last divided by this


def surrogate(problem, name, seed, n_epochs):
    """Return the scores of every cell, of the training rows and of test rows, and the CPU seconds.

    ``n_epochs`` are those of a pilot.
    """
    start = time.process_time()
    search = search_of(problem, name, seed, n_epochs)
    times = search.stopping_times
    search.set_params(
        soft_ratios=sorted({squared(problem, cell) for cell in CELLS}),
        temperatures=TEMPERATURES,
        temperature_scaling="squared",
        cv=None if times is None else 5,
        scoring=["accuracy", "neg_log_loss"],
        refit=False,
    )
    X, labels = flat(problem.train.X), problem.train.labels
    given = {"teacher_logits": problem.train.teacher_logits}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # forecasts of long fits
        search.fit(X, labels, **given)
        held_out = scores_of(search, problem, times)
        seconds = time.process_time() - start
        test = problem.test
        search.set_params(cv=None)
        asked = slice(problem.n_asked)
        search.fit(X, labels, **given, X_val=flat(test.X[asked]), y_val=test.y[asked])
    on_test = scores_of(search, problem, times)
    best = [int(of_times.argmax()) for of_times in held_out["neg_log_loss"]]
    return {
        "held_out": held_out["accuracy"][range(len(CELLS)), best],
        "test": on_test["accuracy"][range(len(CELLS)), best],
        "times": times and [times[index] for index in best],
        "seconds": seconds,
    }


def search_of(problem, name, seed, n_epochs):
    """Return a search with the kernel and the stopping times of a surrogate."""
    if name == "infinite width":
        return LinearizedKDStudentCV(kernel=NTK(depth=problem.depth))
    if name.startswith("own"):
        module = settled(problem.build(torch.Generator().manual_seed(seed)).double(), problem)
        kernel = EmpiricalNTK(module, input_shape=problem.input_shape)
        times = time_of_sgd(problem) if name.endswith("finite time") else None
        return LinearizedKDStudentCV(kernel=kernel, stopping_times=times)
    search = LinearizedKDStudentCV.for_network(
        network_of(problem, seed),
        flat(problem.train.X),
        problem.train.labels,
        teacher_logits=problem.train.teacher_logits,
        n_epochs=n_epochs,
        n_pilots=problem.n_pilots,
        **({} if name.endswith("finite time") else {"stopping_times": None}),
    )
    search.kernel.module.double()
    return search


def network_of(problem, seed):
    """Return the problem's network as an estimator that is not fitted.

    Its loss is that with T², so that one learning rate serves any temperature.
    """
    training = problem.training
    is_adam = training.optimizer == "adam"
    options = {} if is_adam else {"momentum": training.momentum, "nesterov": True}
    callbacks = []
    if training.schedule == "cosine":
        callbacks = [LRScheduler("LambdaLR", lr_lambda=Cosine(training.epochs))]
    return TorchStudent(
        problem.build,
        soft_ratio=squared(problem, MATCHED),
        temperature=MATCHED[1],
        temperature_scaling="squared",
        optimizer="Adam" if is_adam else "SGD",
        lr=training.learning_rate,
        optimizer_params=options,
        max_epochs=training.epochs,
        batch_size=training.batch_size,
        input_shape=problem.input_shape,
        validation_fraction=None if problem.validation is None else 0.2,
        callbacks=callbacks,
        random_state=seed,
    )


class Cosine:
    """The factor of the learning rate in an epoch, from 1 to 0."""

    def __init__(self, n_epochs):
        self.n_epochs = n_epochs

    def __call__(self, epoch):
        return (1 + math.cos(math.pi * epoch / self.n_epochs)) / 2


def settled(module, problem):
    """Return a module whose batch statistics are those of the training rows."""
    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = None
    with torch.no_grad():
        module.train()(torch.as_tensor(problem.train.X).double())
    return module.eval()


def time_of_sgd(problem):
    """Return learning rate × steps / (1 − momentum), or times up to it where training stops early.

    None for Adam, whose steps have no time.
    """
    training = problem.training
    if training.optimizer == "adam":
        return None
    steps_of_epoch = math.ceil(len(problem.train.X) / training.batch_size)
    cosine = Cosine(training.epochs)

    def factor(step):
        return cosine(step // steps_of_epoch) if training.schedule == "cosine" else 1.0

    n_steps = training.epochs * steps_of_epoch
    last = stopping_time_of(
        training.learning_rate, n_steps, momentum=training.momentum, schedule=factor
    )
    if problem.validation is None:
        return [last]
    return np.geomspace(last / EARLIEST, last, N_TIMES).tolist()


def squared(problem, cell):
    """Return the soft ratio of a cell where T² scales its soft term.

    Networks are trained on Eq. 2 divided by its curvature c = ρ T^k/T² + 1 − ρ: for k = 0 that is
    the loss with T² of the soft ratio ρ/(T² c), so that all cells train for the same time.
    """
    rho, T = cell
    if problem.training.temperature_scaling == "squared":
        return rho
    return round(rho / T**2 / (rho / T**2 + 1 - rho), 12)


def scores_of(search, problem, times):
    """Return each score of every cell at every time, (n_cells, n_times)."""
    results = search.cv_results_
    place = {
        (p["soft_ratio"], p["temperature"], p.get("stopping_time")): index
        for index, p in enumerate(results["params"])
    }
    index = [[place[squared(problem, c), c[1], t] for t in times or [None]] for c in CELLS]
    return {name: results[f"mean_test_{name}"][index] for name in search.scoring}


def flat(X):
    return X.reshape(len(X), -1)
