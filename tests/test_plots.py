"""Every plot is a picture without a missing glyph, a cut text or two labels on each other, with or without a font."""

import json
import warnings

import numpy as np
import pytest
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from sklearn.metrics import confusion_matrix

from kd_trainer import fonts, plots
from kd_trainer.analysis import analyse
from kd_trainer.fonts import are_ids, axis_names, width

CHINESE = [
    "体育",
    "娱乐",
    "家居",
    "房产",
    "教育",
    "时尚",
    "时政",
    "游戏",
    "科技",
    "财经",
    "彩票",
    "股票",
    "社会",
    "星座",
    "军事",
]
NAMES = {
    "two": ["neg", "pos"],
    "Chinese": CHINESE,
    "long Chinese": [f"国际{name}与{name}相关的新闻" for name in CHINESE],
    "long": [f"a rather long class name, number {i}" for i in range(15)],
    "hostile": ["$x$", "$", "_^{", "\\frac", "a\nb", "", "😀", "x\x00y"],
    "many": [f"label_{i}" for i in range(45)],
}
TIMES = {"linear": 0.3, "teacher": 50.0, "student": 2.4, "distilled": 2.4, "onnx": 1.5, "onnx-int8": 0.4}
HISTORY = [
    *({"loss": 3 / step, "kd_loss": 4 / step, "task_loss": 1 / step, "epoch": step / 5} for step in range(1, 11)),
    *({"eval_loss": 0.2, "eval_accuracy": 0.8, "eval_f1": 0.7, "epoch": float(epoch)} for epoch in (1, 2)),
    {"train_loss": 1.0, "epoch": 2.0},
]


@pytest.fixture(params=["with the fonts here", "without"])
def installed(request, monkeypatch):
    """The fonts of this machine, and none but matplotlib's own."""
    fonts.find_families.cache_clear()
    if request.param == "without":
        monkeypatch.setattr("matplotlib.font_manager.findSystemFonts", lambda *args, **kwargs: [])
    yield request.param
    fonts.find_families.cache_clear()


def make_report(names, times, rows=400):
    """A report, labels and logits of models that take `times`."""
    generator = np.random.default_rng(0)
    labels = np.arange(rows) % len(names)
    logits = {
        name: (3 * np.eye(len(names))[labels] + generator.normal(0, 2, (rows, len(names)))).astype(np.float32)
        for name in times
    }
    report = {
        name: {"accuracy": float((array.argmax(1) == labels).mean()), "latency_ms": times[name], "size_mb": 1.0}
        for name, array in logits.items()
    }
    validation = (labels[:200], {name: array[:200] for name, array in logits.items()})
    return {**report, "labels": names, "split": "test", **analyse(names, labels, logits, validation)}, labels, logits


def overlapping(texts, renderer):
    """Pairs of texts whose boxes overlap."""
    boxes = [(text.get_text(), text.get_window_extent(renderer).padded(-1)) for text in texts if text.get_text()]
    return [(one, two) for i, (one, box) in enumerate(boxes) for two, other in boxes[:i] if box.overlaps(other)]


def check_figure(figure):
    """Draws a figure; no text of an axis lies on another one of it."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            if axis.get_visible():
                assert not overlapping([*axis.get_ticklabels(), axis.label], renderer)


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
def test_every_plot_is_a_picture_without_missing_glyphs(tmp_path, names, installed):
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": HISTORY}))
    report, labels, logits = make_report(names, {"teacher": 50.0, "distilled": 2.0})
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # "Glyph ... missing" among others
        drawn = plots.draw_plots(tmp_path, report, labels, logits)
    assert drawn == ["accuracy_latency.png", "confusion.png", "reliability.png", "training.png"]
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == drawn
    for name in drawn:
        with Image.open(tmp_path / "plots" / name) as image:
            assert image.format == "PNG" and min(image.size) > 200
            pixels = np.asarray(image.convert("L"))
        # White all around: nothing was cut off at an edge.
        assert all((edge == 255).all() for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1])), name


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
def test_no_name_lies_on_another(names, installed):
    report, labels, logits = make_report(names, {"teacher": 50.0, "distilled": 2.0})
    with rc_context(plots.STYLE):
        check_figure(plots.confusion(report, labels, logits))


@pytest.mark.parametrize(
    "times",
    [
        TIMES,
        {"student": 2.0},
        {"teacher": None, "distilled": 2.0},
        {"teacher": None},
        {"teacher": 5000.0, "linear": 0.01},
    ],
)
def test_every_row_is_a_point_at_its_place(times):
    report, *_ = make_report(NAMES["two"], times)
    with rc_context(plots.STYLE):
        figure = plots.accuracy_latency(report)
        check_figure(figure)
    (axes,) = figure.axes
    points = {tuple(bar[0].get_xydata()[0]) for bar in axes.containers}
    wanted = {(time, 100 * report[name]["accuracy"]) for name, time in times.items() if time is not None}
    assert points == wanted
    (legend,) = figure.legends
    assert [text.get_text().split(":")[0] for text in legend.get_texts()] and len(legend.get_texts()) == len(times)
    low, high = axes.get_xlim()
    assert all(low < time < high for time, _ in wanted)


def test_confusion_counts_the_answers():
    report, labels, logits = make_report(NAMES["Chinese"], {"teacher": 1.0, "distilled": 1.0})
    labels = labels.copy()
    labels[:50] = -100
    figure = plots.confusion(report, labels, logits)
    for axes, name in zip(figure.axes, ("teacher", "distilled"), strict=False):
        counts = confusion_matrix(labels[50:], logits[name][50:].argmax(1))
        shown = np.zeros_like(counts)
        for text in axes.texts:
            said, true = map(int, text.get_position())
            shown[true, said] = int(text.get_text())
        assert np.array_equal(shown, counts)
        np.testing.assert_allclose(axes.images[0].get_array(), counts / counts.sum(1, keepdims=True))


def test_curves_are_those_of_the_log(tmp_path):
    assert plots.training(tmp_path) is None  # no log
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": HISTORY}))
    losses, scores = plots.training(tmp_path).axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in losses.lines}
    assert lines.keys() == {"loss", "kd_loss", "task_loss", "loss, validation"}
    assert lines["kd_loss"] == [[step / 5, 4 / step] for step in range(1, 11)]
    lines = {line.get_label(): line.get_xydata().tolist() for line in scores.lines}
    assert lines == {"accuracy": [[1, 80], [2, 80]], "f1": [[1, 70], [2, 70]]}


def test_what_there_is_nothing_to_draw_of_is_left_out(tmp_path):
    report, labels, logits = make_report(NAMES["two"], {"student": 2.0})
    unlabelled = np.full(len(labels), -100)
    report = {
        "student": {"accuracy": None, "latency_ms": 2.0, "size_mb": 1.0},
        "labels": report["labels"],
        "split": "test",
    }
    assert plots.draw_plots(tmp_path, report, unlabelled, logits) == []
    report, labels, logits = make_report([f"{i}" for i in range(80)], {"student": 2.0})
    assert plots.confusion(report, labels, logits) is None


def test_without_matplotlib_one_line_says_so(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    report, labels, logits = make_report(NAMES["two"], {"student": 2.0})
    assert plots.draw_plots(tmp_path, report, labels, logits) == []
    assert "matplotlib" in caplog.text and len(caplog.records) == 1 and not [*tmp_path.iterdir()]


def test_without_a_font_labels_are_their_ids(monkeypatch):
    fonts.find_families.cache_clear()
    monkeypatch.setattr("matplotlib.font_manager.findSystemFonts", lambda *args, **kwargs: [])
    shown, _ = axis_names(CHINESE)
    assert shown == [str(index) for index in range(15)] and are_ids(CHINESE, shown)
    assert axis_names(["neg", "café", "ЕЦБ"])[0] == ["neg", "café", "ЕЦБ"]  # matplotlib's own font has these
    assert not are_ids(["0", "1"], axis_names(["0", "1"])[0])
    fonts.find_families.cache_clear()


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
def test_shown_names_are_short_and_no_two_are_alike(names, installed):
    shown, _ = axis_names(names)
    assert len(set(shown)) == len(names) == len(shown)
    assert all(width(name) <= fonts.WIDEST + 4 and name.isprintable() and name for name in shown)
