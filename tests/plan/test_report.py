"""The report: one page that needs nothing else, and pictures."""

import html
import re
import shutil
import subprocess

import matplotlib as mpl
import pytest
from small_plans import GRID

from sklearn_kd import DistillationPlan

mpl.use("agg")
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def page(plan, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    plan.to_html(path)
    return path


def test_it_holds_every_sentence_and_needs_no_network(plan, page):
    text = page.read_text(encoding="utf-8")
    for finding in plan.findings_.values():
        for sentence in finding.sentences:
            assert html.escape(sentence) in text
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', text)
    assert len(sources) == 4  # recipe, teacher, rows, stopping
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "http" not in text.replace("http-equiv", "")
    assert html.escape(plan.recipe_.as_code("torch")) in text
    n_cells = len(plan.search_.cv_results_["params"])
    assert text.count("<tr>") == 1 + n_cells + 1 + 3  # cells; forecasts of three ρ


def test_names_are_escaped(digits):
    X, y, teacher = digits
    teachers = {"<b>good</b>": teacher, "other": teacher}
    plan = DistillationPlan(teachers=teachers, n_orders=2, **GRID).fit(X, y)
    assert "<b>good</b>" not in plan._repr_html_()


def test_a_notebook_shows_it_once_it_is_there(plan):
    assert plan._repr_html_().startswith('<div class="skd">')
    assert "Plan of a distillation" not in DistillationPlan()._repr_html_()
    assert plan._repr_mimebundle_()["text/html"] == plan._repr_html_()


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium, which pip does not install")
@pytest.mark.parametrize("width", [1200, 500])
def test_a_browser_shows_it_without_sideways_scrolling(page, width, tmp_path):
    probe = page.read_text(encoding="utf-8").replace(
        "</body>",
        "<script>document.title = [document.documentElement.scrollWidth <= innerWidth,"
        "[...document.images].every(i => i.complete && i.naturalWidth > 100)].join()"
        "</script></body>",
    )
    copy = tmp_path / "probe.html"
    copy.write_text(probe, encoding="utf-8")
    run = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},900",
         f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000", "--dump-dom",
         copy.as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
    )  # fmt: skip
    assert "<title>true,true</title>" in run.stdout


@pytest.mark.parametrize("topic", ["recipe", "teacher", "rows", "stopping"])
def test_every_piece_is_drawn(plan, topic):
    figure = plan.plot(topic)
    axes = figure.axes[0]
    assert axes.has_data()
    assert axes.get_title()
    mpl.pyplot.close(figure)


def test_all_pieces(plan):
    figure = plan.plot()
    assert sum(ax.has_data() for ax in figure.axes) >= 4
    mpl.pyplot.close(figure)


def test_pieces_that_there_are_not(plan):
    with pytest.raises(ValueError, match="topic='student' must be one of"):
        plan.plot("student")
    _, ax = mpl.pyplot.subplots()
    with pytest.raises(ValueError, match="name it by topic"):
        plan.plot(ax=ax)
    mpl.pyplot.close()
