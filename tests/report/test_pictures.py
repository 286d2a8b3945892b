"""The pictures: no text overlaps another or is cut off; limits, front and per cents are where the figures say."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest

pytest.importorskip("matplotlib")
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from records import record

from paddlelite_callbacks import Budget
from paddlelite_callbacks.report.curves import curves_png
from paddlelite_callbacks.report.drawing import fitted
from paddlelite_callbacks.report.pareto import ladder_figure, ladder_png

BUDGET = Budget(size_mb=20, latency_ms=10, metric="acc", baseline=0.95, metric_limit=0.9)


def run_of(name, acc, ms, size=10.0):
    return record(name, acc=acc, size=size, ms=(("onnxruntime", ms),), agree=("onnxruntime",))


def texts_of(figure):
    """Box of every text of a figure that is seen, in pixels."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    axes = figure.axes[0]
    frame = axes.get_window_extent()
    ticks = {*axes.get_xticklabels(which="both"), *axes.get_yticklabels(which="both")}
    boxes = []
    for text in dict.fromkeys(figure.findobj(lambda one: isinstance(one, Text) and one.get_visible())):
        if not text.get_text().strip():
            continue
        box = Text.get_window_extent(text, renderer)  # without the line that leads to an annotation
        x, y = (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2
        if text in ticks and not (frame.x0 - 1 <= x <= frame.x1 + 1 or frame.y0 - 1 <= y <= frame.y1 + 1):
            continue  # ticks out of range are not drawn
        boxes.append((text.get_text(), box))
    return boxes


def clusters():
    stream = random.Random(3)
    spread = [run_of(f"run {i}", stream.uniform(0.85, 0.95), stream.uniform(1, 20)) for i in range(24)]
    near = [run_of(f"run {i}", 0.9 + 1e-5 * i, 5 + 1e-4 * i) for i in range(12)]
    same = [run_of(f"run {i}", 0.9, 5.0) for i in range(12)]
    line = [run_of(f"a very long name of a run that is number {i}", 0.9 + 0.001 * i, 1.0 + i / 10) for i in range(24)]
    return {"near": near, "same": same, "line": line, "one": spread[:1], "many": spread * 2}


@pytest.mark.parametrize("kind", clusters())
def test_no_two_texts_overlap_and_none_is_cut_off(kind):
    figure = ladder_figure(clusters()[kind], metric="acc", title="A title " * 10, budget=BUDGET)
    boxes = texts_of(figure)
    assert len(boxes) > 10
    for (text, one), (other_text, other) in itertools.combinations(boxes, 2):
        width = min(one.x1, other.x1) - max(one.x0, other.x0)
        height = min(one.y1, other.y1) - max(one.y0, other.y0)
        assert width <= 1 or height <= 3, (text, other_text)  # boxes hold the room below letters too
    for text, box in boxes:
        assert figure.bbox.x0 <= box.x0, text
        assert box.x1 <= figure.bbox.x1, text
        assert figure.bbox.y0 <= box.y0, text
        assert box.y1 <= figure.bbox.y1, text


def test_limits_and_front_are_where_the_figures_say():
    runs = [run_of("a", 0.90, 2.0), run_of("b", 0.94, 6.0), run_of("c", 0.92, 8.0), run_of("d", 0.96, 12.0)]
    axes = ladder_figure(runs, metric="acc", budget=BUDGET).axes[0]
    lines = {line.get_label(): line for line in axes.lines}
    assert sorted(lines) == ["Pareto front", "acc limit 90 %", "acc limit 90.25 %", "latency limit 10 ms"]
    assert list(lines["Pareto front"].get_xdata()) == [2.0, 6.0, 12.0]  # c is slower and worse than b
    assert list(lines["Pareto front"].get_ydata()) == [0.90, 0.94, 0.96]
    assert lines["Pareto front"].get_drawstyle() == "steps-post"
    assert set(lines["latency limit 10 ms"].get_xdata()) == {10.0}
    assert set(lines["acc limit 90.25 %"].get_ydata()) == {0.95 * 0.95}
    assert set(lines["acc limit 90 %"].get_ydata()) == {0.9}
    low, high = axes.get_ylim()
    assert low < 0.9 < 0.96 < high
    left, right = axes.get_xlim()
    assert left < 2 < 12 < right


@pytest.mark.parametrize(
    ("ms", "said"), [(1000, "latency limit 1000 ms (far right)"), (0.01, "latency limit 0.01 ms (far left)")]
)
def test_a_limit_far_off_is_said_and_does_not_squeeze_the_points(ms, said):
    figure = ladder_figure([run_of("a", 0.9, 2.0), run_of("b", 0.91, 3.0)], metric="acc", budget=Budget(latency_ms=ms))
    assert said in [text.get_text() for text in figure.legends[0].get_texts()]
    left, right = figure.axes[0].get_xlim()
    assert right - left < 2


def test_shares_are_in_per_cent_and_errors_are_not():
    figure = ladder_figure([run_of("a", 0.9, 2.0), run_of("b", 0.91, 3.0)], metric="acc")
    assert figure.axes[0].yaxis.get_major_formatter()(0.975, 0) == "97.5 %"
    runs = [replace(run_of(name, 0.9, 2.0), metrics={"rmse": 0.4}) for name in "ab"]
    assert "%" not in ladder_figure(runs, metric="rmse").axes[0].yaxis.get_major_formatter()(0.4, 0)


def test_who_fails_the_gate_is_told_by_a_cross_and_a_word():
    runs = [run_of("a", 0.94, 2.0), run_of("b", 0.95, 30.0)]
    words = [text.get_text() for text in ladder_figure(runs, metric="acc", budget=BUDGET).texts]
    assert words.count("pass") == words.count("fail") == 1
    assert "area of a bubble: exported size; cross: fails the gate" in words
    words = [text.get_text() for text in ladder_figure(runs, metric="acc").texts]
    assert "pass" not in words
    assert "area of a bubble: exported size" in words


@pytest.mark.parametrize("values", [(0.0, 0.0), (1e-300, 5e-324), (1e11, -1e11), (-0.5, -0.5), (1e-9, 1.0)])
@pytest.mark.parametrize("ms", [(1e-11, 9e11), (5.0, 5.0)])
def test_figures_of_any_size_are_drawn_without_a_warning(values, ms, tmp_path, recwarn):
    runs = [run_of("a", values[0], ms[0], size=0.0), run_of("b", values[1], ms[1], size=1e300)]
    budget = Budget(size_mb=20, latency_ms=1e9, metric="acc", metric_limit=1e300)
    ladder_png(runs, tmp_path / "a.png", metric="acc", budget=budget)
    assert (tmp_path / "a.png").stat().st_size > 1000
    assert not [one for one in recwarn if one.category is UserWarning]


def test_curves_of_many_epochs_and_runs(tmp_path):
    epochs = [{"epoch": e, "loss": 1 / e, "eval_acc": 1 - 1 / e, "eval_loss": 2 / e} for e in range(1, 3000)]
    runs = [replace(record(f"run {i}"), history=tuple(epochs)) for i in range(10)]
    assert curves_png(runs, tmp_path / "a.png")
    assert not curves_png([record("none")], tmp_path / "b.png")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize(
    ("text", "most", "short"),
    [
        ("abc", 3, "abc"),
        ("abcdefghij", 7, "abcd\u2026ij"),
        ("\u4e2d\u6587\u540d\u5b57", 8, "\u4e2d\u6587\u540d\u5b57"),
        ("\u4e2d\u6587\u540d\u5b57", 7, "\u4e2d\u6587\u2026\u5b57"),
        ("a\nb\tc", 9, "a b c"),
        ("", 5, ""),
    ],
)
def test_names_are_cut_in_their_middle(text, most, short):
    assert fitted(text, most) == short
