"""What the scripts of this folder share: arguments, CIFAR-10, and ways to report."""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
from sklearn.datasets import fetch_openml
from trainer import Recipe, Training, train_grid

from sklearn_kd.paper._common import mean_and_error, print_table

HERE = Path(__file__).parent

__all__ = ["mean_and_error", "print_table"]  # from the folder of the figures


def parser(description):
    """Return a parser of what every script here takes."""
    result = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = result.add_argument
    add("--data", type=Path, help="folder of the data (README); without it they are fetched")
    add("--quick", action="store_true", help="a small run that shows that the script works")
    add("--output", type=Path, default=HERE / "output", help="folder of tables and checkpoints")
    add("--json", type=Path, help="file for the numbers; default: in the output folder")
    add("--plot", type=Path, help="file for the picture (PNG)")
    add("--seconds", type=float, default=np.inf, help="stop after this time; run again to go on")
    add("--device", default="cpu", help="where to train, such as cuda")
    return result


def cifar10(folder, side):
    """Return CIFAR-10 images (n, 3, side, side), standardised by channel, and their classes.

    Parameters
    ----------
    folder : path or None
        Holds cifar10/train_batch{1,2,3}.npz: the first 30 000 training images in their order, ``D``
        (10000, 3, 32, 32) the differences of neighbours along rows modulo 256 and ``y``. None
        fetches the set from OpenML.
    side : int
        Images are averaged over squares of 32/side pixels.
    """
    if folder is None:
        X, y = fetch_openml("CIFAR_10", version=1, as_frame=False, return_X_y=True)
        images, y = X.reshape(-1, 3, 32, 32)[:30_000], y[:30_000].astype(int)
    else:
        parts = []
        for batch in (1, 2, 3):
            with np.load(folder / "cifar10" / f"train_batch{batch}.npz") as file:
                parts.append((np.cumsum(file["D"], axis=3, dtype=np.uint8), file["y"]))
        images, y = map(np.concatenate, zip(*parts, strict=True))
    step = 32 // side
    X = images.reshape(-1, 3, side, step, side, step).mean((3, 5), dtype=np.float32)
    X -= X.mean((0, 2, 3), keepdims=True)
    X /= X.std((0, 2, 3), keepdims=True)
    return X, y.astype(np.int64)


def resnet20_logits(folder):
    """Return the logits of a published ResNet-20 on the images of `cifar10`."""
    with np.load(folder / "cifar10" / "resnet20_logits.npz") as file:
        return file["train"][:30_000]


def report(results, arguments, name):
    """Write the numbers as JSON."""

    def plain(value):
        return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else str(value)

    file = arguments.json or arguments.output / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"arguments": vars(arguments), **results}, default=plain, indent=1))
    print(f"Wrote {file}.")


class Clock:
    """What is left of ``--seconds``."""

    def __init__(self, seconds):
        self._deadline = time.monotonic() + seconds

    def left(self):
        return self._deadline - time.monotonic()


def or_stop(result):
    """Return a result of `train_grid`, or end the script where time ran out."""
    if result is None:
        sys.exit("Time is over; run the same command again to go on from here.")
    return result


def imperfect_teacher(X, y, n_rows, build, arguments, clock):
    """Return the logits on X of a network trained on the labels of the first ``n_rows`` images.

    The recipe ρ = 0 is training on hard labels alone.
    """
    training = Training(0.2, epochs=15, batch_size=128, schedule="cosine", weight_decay=5e-4)
    n_classes = y.max() + 1
    no_logits = np.zeros((n_rows, n_classes), np.float32)
    logits, _ = or_stop(
        train_grid(
            build,
            [Recipe(soft_ratio=0.0, temperature=1.0, seed=10_000)],
            training,
            (X[:n_rows], y[:n_rows], no_logits),
            evaluate=X,
            folder=arguments.output / f"teacher_{settings(arguments)}",
            seconds=clock.left(),
            device=arguments.device,
            log=print,
        )
    )
    return logits[0]


def settings(arguments):
    """Return what names the folder of a run: results of other sizes do not mix."""
    return "quick" if arguments.quick else f"{arguments.channels}x{arguments.side}"
