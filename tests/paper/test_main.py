"""The figures of the paper, from an installed package."""

import json
import subprocess
import sys

import pytest

from sklearn_kd.paper import __main__ as command


def test_a_figure_is_written_from_anywhere(tmp_path):
    run = subprocess.run(
        [sys.executable, "-m", "sklearn_kd.paper", "fig1", "--quick", "--output", "figures"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert "0.033" in run.stdout  # the largest difference to the published curves
    assert (tmp_path / "figures" / "fig1.png").stat().st_size > 10_000
    numbers = json.loads((tmp_path / "figures" / "fig1.json").read_text())
    assert numbers["arguments"]["figure"] == "fig1"


@pytest.mark.slow
@pytest.mark.parametrize("figure", ["fig2", "fig3", "fig4", "fig5"])
def test_other_figures(figure, tmp_path, capsys):
    command.main([figure, "--quick", "--output", str(tmp_path)])
    assert (tmp_path / f"{figure}.png").exists()
    assert json.loads((tmp_path / f"{figure}.json").read_text())["arguments"]["quick"]
    assert "Wrote" in capsys.readouterr().out


def test_a_figure_that_there_is_not(capsys):
    with pytest.raises(SystemExit):
        command.main(["fig9"])
    assert "fig5" in capsys.readouterr().err


def test_without_matplotlib(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"pip install 'sklearn_kd\[plot,progress\]'"):
        command.main(["fig1", "--output", str(tmp_path / "figures")])
    assert not (tmp_path / "figures").exists()


def test_importing_it_pulls_in_no_plotting():
    code = "import sys, sklearn_kd.paper.__main__; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "sklearn_kd.paper.fig5" in loaded.stdout
    assert "matplotlib" not in loaded.stdout.split()
