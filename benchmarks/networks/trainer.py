"""Reference trainer: finite students of knowledge distillation, many of them side by side.

A student minimises Eq. 2 on the training rows by stochastic gradient descent, or by Adam,

    (1/N) Σ ρ T^k H(σ(z_t/T), σ(z/T)) + (1 − ρ) H(y, σ(z)),

k = 0 (``temperature_scaling="none"``, the paper's loss) or 2 ("squared"), σ the softmax where there
are more than two classes. Students of one architecture are trained at once, as one stack with the
student's index as the first axis: for small MLPs a whole ρ × T × seed grid then costs little more
than its arithmetic. Thin ResNets on a CPU are trained faster one after the other (``at_once=1``).

Interface
---------
`Recipe(soft_ratio, temperature, seed)`
    What one student is trained on; the seed draws its initial weights and the order of its rows,
    so that students of the same seed are paired. `grid` makes the list of all combinations.
`Training(learning_rate, epochs, batch_size, ...)`
    What all students share; ``patience`` asks for early stopping on validation rows,
    ``tolerance`` for training until the training logits are the effective ones (Eq. 3).
`Students(build, recipes, training).fit(X, y, teacher_logits, validation=(X, y, teacher_logits))`
    Trains; ``build(generator)`` returns a fresh module, its weights drawn from the generator, with
    one output (two classes) or K. ``logits(X)`` is (n_students, n) or (n_students, n, K). With
    ``checkpoint=`` a file, ``fit`` goes on from what is stored there; with ``seconds=`` it
    stops in time, leaves ``finished`` False, and the same call later goes on, bit for bit.
`train_grid(build, recipes, training, rows, evaluate=X_test, folder=..., at_once=..., seconds=...)`
    The same for a list of recipes of any length, with results kept in a folder: returns the logits
    on ``evaluate`` and the epochs, or None where time ran out, to be called again.

One learning rate serves all recipes: each student's loss is divided by its curvature relative to
that of cross-entropy at small logits, ρ T^k/T² + 1 − ρ, which leaves the minimiser as it is.
"""

import copy
import math
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.functional import binary_cross_entropy_with_logits, log_softmax, one_hot

from sklearn_kd.distillation import effective_logits

EVALUATION_ROWS = 1024
SECONDS_BETWEEN_CHECKPOINTS = 20


@dataclass(frozen=True)
class Recipe:
    """Soft ratio ρ in [0, 1], temperature T > 0 and seed of one student."""

    soft_ratio: float
    temperature: float
    seed: int


@dataclass(frozen=True)
class Training:
    """How all students of a stack are trained.

    Attributes
    ----------
    learning_rate : float
        Of SGD, for a loss of the curvature of cross-entropy (see the module's docstring).
    epochs : int
        Passes over the rows, at most.
    batch_size : int, default=None
        Rows of a step; None takes all rows: gradient descent.
    momentum : float, default=0.9
        Nesterov's if positive.
    weight_decay : float, default=0.0
        As in `torch.optim.SGD`.
    optimizer : {"sgd", "adam"}, default="sgd"
        "adam" takes no notice of ``momentum``.
    schedule : {"constant", "cosine"}, default="constant"
        "cosine" lowers the learning rate to 0 over ``epochs``.
    temperature_scaling : {"none", "squared"}, default="none"
        k = 0 or 2 in the loss.
    check_every : int, default=1
        Epochs between two looks at validation rows, at the tolerance and at the clock.
    patience : int, default=None
        Looks without a lower validation loss (Eq. 2) after which a student stops; the weights of
        the lowest are kept. None: the last weights are.
    tolerance : float, default=None
        A student stops once the root mean square of z − z_eff on its training rows is below it.
    centred : bool, default=False
        Train f(x; w) − f(x; w₀), whose initial outputs are zero.
    """

    learning_rate: float
    epochs: int
    batch_size: int | None = None
    momentum: float = 0.9
    weight_decay: float = 0.0
    optimizer: str = "sgd"
    schedule: str = "constant"
    temperature_scaling: str = "none"
    check_every: int = 1
    patience: int | None = None
    tolerance: float | None = None
    centred: bool = False


def grid(soft_ratios, temperatures, seeds):
    """Return the recipes of all combinations, seeds outermost."""
    return [Recipe(rho, T, seed) for seed, rho, T in product(seeds, soft_ratios, temperatures)]


def distillation_loss(
    z: Tensor,  # (..., n), or (..., n, K)
    teacher_logits: Tensor,  # broadcasts with z
    targets: Tensor,  # probabilities, broadcast with z
    soft_ratio: Tensor | float,  # broadcasts with the rows (..., n)
    temperature: Tensor | float,  # broadcasts with the rows (..., n)
    temperature_scaling: str,
    *,
    is_binary: bool,
) -> Tensor:  # (..., n)
    """Return every row's loss, ρ T^k H(σ(z_t/T), σ(z/T)) + (1 − ρ) H(y, σ(z)) (Eq. 2)."""
    T = torch.as_tensor(temperature, dtype=z.dtype, device=z.device)
    T_class = T if is_binary else T.unsqueeze(-1)
    taught = _probabilities(teacher_logits / T_class, is_binary)
    soft = _soft_factor(T, temperature_scaling) * _cross_entropy(taught, z / T_class, is_binary)
    return soft_ratio * soft + (1 - soft_ratio) * _cross_entropy(targets, z, is_binary)


def _soft_factor(T, temperature_scaling):
    return {"none": torch.ones_like(T), "squared": T.square()}[temperature_scaling]


class Students:
    """A stack of finite students; see the module's docstring.

    Parameters
    ----------
    build : callable
        ``build(generator)`` returns a fresh `torch.nn.Module` with weights drawn from the
        generator, whose outputs are (n, 1) or (n, K).
    recipes : list of Recipe
        One per student.
    training : Training
        What they share.
    device, dtype : default="cpu", torch.float32
        Where, and in which precision, to train.

    Attributes
    ----------
    finished : bool
        Whether training has ended; not after a ``fit`` that ran out of ``seconds``.
    epochs : ndarray of shape (n_students,)
        Epochs after which the kept weights were reached.
    diverged : tensor of shape (n_students,)
        Students that were stopped because their loss was no longer finite.
    history : list of dict
        For every look: ``epoch``; by student the mean training loss since the last one, ``loss``;
        ``validation_loss`` and ``gap``, the root mean square of z − z_eff, where asked for.
    """

    def __init__(
        self,
        build: Callable[[torch.Generator], nn.Module],
        recipes: list[Recipe],
        training: Training,
        *,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.recipes = list(recipes)
        self.training = training
        self.device, self.dtype = torch.device(device), dtype
        generators = [torch.Generator().manual_seed(recipe.seed) for recipe in self.recipes]
        modules = [build(generator).to(dtype) for generator in generators]
        self._module = modules[0].to(device)  # lends its forward pass to all
        state = stack_module_state(modules)
        self._params, self._buffers = (
            {name: value.detach().to(device) for name, value in part.items()} for part in state
        )
        if training.centred and self._buffers:
            raise ValueError("centred=True needs a module without buffers (batch statistics).")
        self._initial = _copy(self._params) if training.centred else None
        # The order of the rows is a function of the seed alone, whatever the module draws.
        self._generators = {
            seed: torch.Generator().manual_seed(seed) for seed in {r.seed for r in self.recipes}
        }

        for value in self._params.values():
            value.requires_grad_()
        common = {"lr": training.learning_rate, "weight_decay": training.weight_decay}
        common["fused"] = True  # one pass over the weights
        if training.optimizer == "adam":
            self._optimizer = torch.optim.Adam(self._params.values(), **common)
        else:
            self._optimizer = torch.optim.SGD(
                self._params.values(),
                momentum=training.momentum,
                nesterov=training.momentum > 0,
                **common,
            )
        self._kept = _copy(self._state())
        self._active = torch.ones(len(self.recipes), dtype=torch.bool, device=self.device)
        self.diverged = torch.zeros_like(self._active)
        self._best_loss = torch.full((len(self.recipes),), math.inf, device=self.device)
        self._looks_since_best = torch.zeros(len(self.recipes), device=self.device)
        self._epoch = 0
        self._best_epoch = torch.zeros(len(self.recipes), device=self.device)
        self.history: list[dict] = []

    @property
    def finished(self) -> bool:
        return self._epoch >= self.training.epochs or not bool(self._active.any())

    @property
    def epochs(self) -> np.ndarray:
        return self._best_epoch.long().cpu().numpy()

    def fit(
        self,
        X,
        y,
        teacher_logits,
        *,
        validation=None,
        checkpoint=None,
        seconds=math.inf,
        log=None,
    ):
        """Train until every student has stopped, or for ``seconds``.

        Parameters
        ----------
        X : ndarray or tensor of shape (n, ...)
            Rows, as the module takes them.
        y : ndarray or tensor of shape (n,) or (n, K)
            Labels from 0, or probabilities of the classes.
        teacher_logits : ndarray or tensor of shape (n,) or (n, K)
            Of the class labelled 1, or of all classes. Its shape says whether there are two
            classes (one output) or K.
        validation : tuple (X, y, teacher_logits), default=None
            Rows for ``patience``.
        checkpoint : path, default=None
            Where the state is stored from time to time, and read from if it is there.
        seconds : float, default=inf
            Time after which to store the checkpoint and return; checked at every look.
        log : callable, default=None
            Takes a line of text now and then.
        """
        options = self.training
        if options.patience is not None and validation is None:
            raise ValueError(f"patience={options.patience} needs validation rows; got None.")
        rows = self._rows(X, y, teacher_logits)
        self._is_binary = rows[2].ndim == 1
        if validation is not None:
            validation = self._rows(*validation)
        rho, T = (
            torch.tensor([[getattr(r, name)] for r in self.recipes], **self._placement())
            for name in ("soft_ratio", "temperature")
        )
        curvature = rho * _soft_factor(T, options.temperature_scaling) / T.square() + 1 - rho
        z_0 = self._outputs(self._initial, {}, rows[0]) if options.centred else None
        z_eff = None if options.tolerance is None else self._effective_logits(rows)
        fingerprint = self._fingerprint(rows)
        if checkpoint is not None and Path(checkpoint).exists():
            self._load(checkpoint, fingerprint)

        start = last_save = last_log = time.monotonic()
        while not self.finished:
            losses = [
                self._epoch_of_training(rows, z_0, rho, T, curvature)
                for _ in range(min(options.check_every, options.epochs - self._epoch))
            ]
            self._look(torch.stack(losses).mean(0), validation, rows, z_eff, rho, T)
            now = time.monotonic()
            out_of_time = now - start > seconds
            if checkpoint is not None and (
                self.finished or out_of_time or now - last_save > SECONDS_BETWEEN_CHECKPOINTS
            ):
                self._save(checkpoint, fingerprint)
                last_save = now
            if log is not None and (self.finished or now - last_log > 10):
                log(self._line())
                last_log = now
            if out_of_time:
                break
        return self

    def logits(self, X) -> np.ndarray:
        """Return the logits of the kept weights: (n_students, n), or (n_students, n, K)."""
        X = self._tensor(X)
        params, buffers = self._split(self._kept)
        z = self._outputs(params, buffers, X)
        if self._initial is not None:
            z = z - self._outputs(self._initial, {}, X)
        return z.cpu().numpy()

    def initial_logits(self, X) -> np.ndarray:
        """Return z₀, the logits before training; only with ``centred=True``."""
        return self._outputs(self._initial, {}, self._tensor(X)).cpu().numpy()

    def module(self, student=0) -> nn.Module:
        """Return a module with the kept weights of one student."""
        module = copy.deepcopy(self._module)
        module.load_state_dict({name: value[student] for name, value in self._kept.items()})
        return module.cpu().eval()

    # Training

    def _epoch_of_training(self, rows, z_0, rho, T, curvature):
        """One pass over the rows; return the mean loss of every student."""
        options, n_rows = self.training, len(rows[0])
        if options.schedule == "cosine":
            share = self._epoch / options.epochs
            rate = options.learning_rate * (1 + math.cos(math.pi * share)) / 2
            self._optimizer.param_groups[0]["lr"] = rate
        self._module.train()
        self._epoch += 1
        if options.batch_size is None:
            return self._step(*rows, z_0, rho, T, curvature)
        total = torch.zeros(len(self.recipes), **self._placement())
        orders = self._orders(n_rows)  # (1 or n_students, n_rows)
        students = torch.arange(len(self.recipes), device=self.device)[:, None]
        for batch in orders.split(options.batch_size, dim=1):
            # Students that see the same rows share them; the others each have a copy.
            index = batch[0] if len(batch) == 1 else batch
            batch_z_0 = None if z_0 is None else z_0[students, batch]
            loss = self._step(*(part[index] for part in rows), batch_z_0, rho, T, curvature)
            total += loss * batch.shape[1]
        return total / n_rows

    def _step(self, X, targets, teacher_logits, z_0, rho, T, curvature):
        shared = teacher_logits.ndim == (1 if self._is_binary else 2)
        z = self._forward(self._params, self._buffers, X, shared)
        if z_0 is not None:
            z = z - z_0
        losses = self._loss(z, targets, teacher_logits, rho, T).mean(1)
        self._optimizer.zero_grad()
        (losses / curvature[:, 0]).sum().backward()
        self._optimizer.step()
        return losses.detach()

    def _orders(self, n_rows):
        """Return the next order of the rows, of every student, or the one that they share."""
        orders = {
            seed: torch.randperm(n_rows, generator=generator)
            for seed, generator in self._generators.items()
        }
        if len(orders) == 1:
            return next(iter(orders.values())).to(self.device)[None]
        return torch.stack([orders[recipe.seed] for recipe in self.recipes]).to(self.device)

    @torch.no_grad()
    def _look(self, losses, validation, rows, z_eff, rho, T):
        """Keep what is to be kept, and stop the students that are done."""
        options = self.training
        entry = {"epoch": self._epoch, "loss": losses.tolist()}
        to_keep, stopped = self._active & losses.isfinite(), torch.zeros_like(self._active)
        if options.patience is not None:
            X, targets, teacher_logits = validation
            z = self._outputs(self._params, self._buffers, X)
            if self._initial is not None:
                z = z - self._outputs(self._initial, {}, X)
            loss = self._loss(z, targets, teacher_logits, rho, T).mean(1)
            entry["validation_loss"] = loss.tolist()
            to_keep = to_keep & (loss < self._best_loss)
            self._best_loss = torch.where(to_keep, loss.to(self._best_loss), self._best_loss)
            self._looks_since_best = torch.where(to_keep, 0.0, self._looks_since_best + 1)
            stopped |= self._looks_since_best >= options.patience
        if z_eff is not None:
            z = self._outputs(self._params, self._buffers, rows[0])
            if self._initial is not None:
                z = z - self._outputs(self._initial, {}, rows[0])
            gap = (_centre(z, self._is_binary) - z_eff).square().flatten(1).mean(1).sqrt()
            entry["gap"] = gap.tolist()
            stopped |= gap < options.tolerance
        for name, value in self._state().items():
            mask = to_keep.view(-1, *[1] * (value.ndim - 1))
            self._kept[name] = torch.where(mask, value, self._kept[name])
        self._best_epoch = torch.where(to_keep, float(self._epoch), self._best_epoch)
        self._active = self._active & ~stopped
        self.diverged = self.diverged | ~losses.isfinite()
        self._active &= ~self.diverged
        self.history.append(entry)

    # Forward passes

    def _forward(self, params, buffers, X, shared):
        """Return z, (n_students, n) or (n_students, n, K); X is one for all, or one for each."""

        def one(params, buffers, X):
            return functional_call(self._module, (params, buffers), (X,))

        if len(self.recipes) == 1:
            # vmap would only add its overhead; views, so that the buffers are updated in place.
            alone = (
                {name: value.squeeze(0) for name, value in part.items()}
                for part in (params, buffers)
            )
            z = one(*alone, X if shared else X[0])[None]
        else:
            z = vmap(one, in_dims=(0, 0, None if shared else 0))(params, buffers, X)
        return z.squeeze(-1) if self._is_binary else z

    @torch.no_grad()
    def _outputs(self, params, buffers, X):
        self._module.eval()
        parts = [self._forward(params, buffers, x, True) for x in X.split(EVALUATION_ROWS)]
        return torch.cat(parts, 1)

    def _loss(self, z, targets, teacher_logits, rho, T):
        scaling = self.training.temperature_scaling
        return distillation_loss(
            z, teacher_logits, targets, rho, T, scaling, is_binary=self._is_binary
        )

    def _effective_logits(self, rows):
        _, targets, z_t = rows
        roots = [
            effective_logits(
                z_t.double(),
                targets.double(),
                soft_ratio=recipe.soft_ratio,
                temperature=recipe.temperature,
                temperature_scaling=self.training.temperature_scaling,
            )
            for recipe in self.recipes
        ]
        return torch.stack(roots).to(**self._placement())

    # Rows and states

    def _placement(self):
        return {"device": self.device, "dtype": self.dtype}

    def _tensor(self, X):
        X = torch.as_tensor(X).to(**self._placement())
        return X.contiguous(memory_format=torch.channels_last) if X.ndim == 4 else X

    def _rows(self, X, y, teacher_logits):
        """Return X, the labels as probabilities, and the teacher's logits, as tensors."""
        teacher_logits = torch.as_tensor(teacher_logits).to(**self._placement())
        y = torch.as_tensor(y).to(self.device)
        if teacher_logits.ndim == 2 and y.ndim == 1:
            y = one_hot(y.long(), teacher_logits.shape[1])
        if y.shape != teacher_logits.shape or len(X) != len(y):
            raise ValueError(
                f"{len(X)} rows, labels of shape {tuple(y.shape)} and teacher_logits of shape "
                f"{tuple(teacher_logits.shape)} do not go together."
            )
        return self._tensor(X), y.to(self.dtype), teacher_logits

    def _state(self):
        return {name: value.detach() for name, value in (self._params | self._buffers).items()}

    def _split(self, state):
        return tuple({name: state[name] for name in part} for part in (self._params, self._buffers))

    def _line(self):
        losses = np.array(self.history[-1]["loss"])
        line = f"epoch {self._epoch}/{self.training.epochs}, {int(self._active.sum())} of "
        line += f"{len(self.recipes)} students at work, loss {losses.mean():.5f}"
        if "gap" in self.history[-1]:
            line += f", gap {max(self.history[-1]['gap']):.2g}"
        return line

    # Checkpoints

    def _fingerprint(self, rows):
        """What a checkpoint must agree with to be gone on from."""
        sums = [_checksum(part.cpu()) for part in rows]
        shapes = {name: list(value.shape) for name, value in self._params.items()}
        recipes = [asdict(recipe) for recipe in self.recipes]
        return repr([recipes, asdict(self.training), shapes, str(self.dtype), sums])

    def _save(self, checkpoint, fingerprint):
        state = {
            "fingerprint": fingerprint,
            "state": self._state(),
            "kept": self._kept,
            "initial": self._initial,
            "optimizer": self._optimizer.state_dict(),
            "generators": {seed: g.get_state() for seed, g in self._generators.items()},
            "active": self._active,
            "diverged": self.diverged,
            "best_loss": self._best_loss,
            "best_epoch": self._best_epoch,
            "looks_since_best": self._looks_since_best,
            "epoch": self._epoch,
            "history": self.history,
        }
        checkpoint = Path(checkpoint)
        unfinished = checkpoint.with_name(checkpoint.name + ".part")
        torch.save(state, unfinished)
        unfinished.replace(checkpoint)  # never half a file

    def _load(self, checkpoint, fingerprint):
        stored = torch.load(checkpoint, map_location=self.device, weights_only=True)
        if stored["fingerprint"] != fingerprint:
            raise ValueError(
                f"{checkpoint} belongs to other rows or settings; remove it or name another file."
            )
        with torch.no_grad():
            for name, value in (self._params | self._buffers).items():
                value.copy_(stored["state"][name])
        self._kept, self._initial = stored["kept"], stored["initial"]
        self._optimizer.load_state_dict(stored["optimizer"])
        for seed, state in stored["generators"].items():
            self._generators[seed].set_state(state.cpu())
        self._active, self.diverged = stored["active"], stored["diverged"]
        self._best_loss, self._best_epoch = stored["best_loss"], stored["best_epoch"]
        self._looks_since_best = stored["looks_since_best"]
        self._epoch, self.history = stored["epoch"], stored["history"]


def train_grid(
    build,
    recipes,
    training,
    rows,
    *,
    evaluate,
    folder,
    validation=None,
    at_once=None,
    seconds=math.inf,
    device="cpu",
    dtype=torch.float32,
    log=None,
):
    """Train a student per recipe, ``at_once`` of them side by side, and keep results in a folder.

    Parameters
    ----------
    build, recipes, training, device, dtype
        As for `Students`.
    rows, validation : tuple (X, y, teacher_logits)
        As for `Students.fit`.
    evaluate : array of shape (n_test, ...)
        Rows on which to return the logits.
    folder : path
        Made if missing; holds one file per stack that is done, and a checkpoint of the one at work.
        Another experiment needs another folder.
    at_once : int, default=None
        Students of a stack; None puts all into one.
    seconds : float, default=inf
        Time after which to return None; the next call goes on from there.

    Returns
    -------
    logits : ndarray of shape (n_recipes, n_test) or (n_recipes, n_test, K)
        Of the kept weights.
    epochs : ndarray of shape (n_recipes,)
        After which they were reached.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + seconds
    at_once = at_once or len(recipes)
    done = []
    common = [asdict(training), str(dtype), *map(_checksum, (*rows, *(validation or ()), evaluate))]
    for start in range(0, len(recipes), at_once):
        stack = recipes[start : start + at_once]
        result, checkpoint = (folder / f"{_name(stack)}.{end}" for end in ("npz", "pt"))
        fingerprint = repr([*map(asdict, stack), *common])
        if not result.exists():
            if time.monotonic() > deadline:
                return None
            students = Students(build, stack, training, device=device, dtype=dtype)
            students.fit(
                *rows,
                validation=validation,
                checkpoint=checkpoint,
                seconds=deadline - time.monotonic(),
                log=log and (lambda line, s=start: log(f"students from {s}: {line}")),
            )
            if not students.finished:
                return None
            if students.diverged.any():
                failed = [r for r, d in zip(stack, students.diverged, strict=True) if d]
                raise FloatingPointError(
                    f"The loss of {failed} is not finite at learning_rate="
                    f"{training.learning_rate}; choose a smaller one, and another folder."
                )
            np.savez(
                result,
                logits=students.logits(evaluate),
                epochs=students.epochs,
                fingerprint=fingerprint,
            )
            checkpoint.unlink()
        with np.load(result) as file:
            if file["fingerprint"] != fingerprint:
                raise ValueError(f"{result} belongs to other rows or settings: another folder?")
            done.append((file["logits"], file["epochs"]))
    logits, epochs = zip(*done, strict=True)
    return np.concatenate(logits), np.concatenate(epochs)


def _name(recipes):
    first = recipes[0]
    name = f"rho{first.soft_ratio:g}_T{first.temperature:g}_seed{first.seed}"
    if len(recipes) > 1:
        rest = repr([asdict(recipe) for recipe in recipes])
        name += f"_and_{len(recipes) - 1}_{zlib.crc32(rest.encode()):08x}"
    return name


def _probabilities(logits, is_binary):
    return torch.sigmoid(logits) if is_binary else torch.softmax(logits, -1)


def _cross_entropy(p, z, is_binary):
    """H(p, σ(z)) of every row."""
    if is_binary:
        return binary_cross_entropy_with_logits(z, p.expand_as(z), reduction="none")
    return -(p * log_softmax(z, -1)).sum(-1)


def _centre(z, is_binary):
    return z if is_binary else z - z.mean(-1, keepdim=True)


def _checksum(array):
    return zlib.crc32(np.ascontiguousarray(array).tobytes())


def _copy(state):
    return {name: value.detach().clone() for name, value in state.items()}
