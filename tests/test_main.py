"""The command line."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import nn

from sklearn_kd import __main__ as command


@pytest.fixture
def files(tmp_path):
    X, y = load_digits(return_X_y=True)
    some = np.isin(y, (3, 8))
    X, y = X[some] / 16, (y[some] == 8).astype(int)
    z_t = LogisticRegression(C=0.01).fit(X[:60], y[:60]).decision_function(X[60:260])
    np.savez(tmp_path / "data.npz", X=X[60:260], y=y[60:260])
    np.save(tmp_path / "early.npy", z_t)
    np.save(tmp_path / "late.npy", 3 * z_t)
    return tmp_path


def test_a_plan_and_its_report(files):
    arguments = ["plan", "data.npz", "--teacher-logits", "early.npy", "late.npy"]
    run = subprocess.run(
        [sys.executable, "-m", "sklearn_kd", *arguments, "--report", "report.html"],
        cwd=files,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert "Plan for 200 labelled and 0 unlabelled rows" in run.stdout
    assert "'late'" in run.stdout
    assert (files / "report.html").read_text().startswith("<!doctype html>")


# torch's own, while it exports
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_an_exported_network(files, capsys):
    module = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 1))
    shapes = ((torch.export.Dim("n"), torch.export.Dim.STATIC),)
    exported = torch.export.export(module, (torch.zeros(5, 64),), dynamic_shapes=shapes)
    torch.export.save(exported, files / "student.pt2")
    logits, student = str(files / "early.npy"), str(files / "student.pt2")
    command.main(
        ["plan", str(files / "data.npz"), "--teacher-logits", logits, "--student", student]
    )
    assert "pilots of the network" in " ".join(capsys.readouterr().out.split())


def test_a_file_without_labels(files, capsys):
    np.savez(files / "data.npz", X=np.zeros((5, 2)))
    with pytest.raises(SystemExit):
        command.main(
            ["plan", str(files / "data.npz"), "--teacher-logits", str(files / "early.npy")]
        )
    assert "holds no y" in capsys.readouterr().err
