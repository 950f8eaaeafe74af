"""Pictures of a finished run, drawn from what it has left in its folder."""

import io
import logging
from pathlib import Path

import numpy as np
from sklearn.metrics import confusion_matrix

from .analysis import subject_of
from .arguments import is_number
from .calibration import labelled_rows, reliability_bins
from .errors import InputError
from .fonts import axis_names, width
from .json_file import read_json
from .output_folder import CHECKPOINT_STATE, PLOTS
from .report import table_rows
from .whole import written_whole

logger = logging.getLogger(__name__)

MOST_NUMBERS, MOST_LABELS = 20, 60  # labels of a confusion matrix with counts written in, and at all
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.parse_math": False,  # a label may be called $x$
    "savefig.dpi": 130,
}
COLORS = {"teacher": "C0", "student": "C1", "distilled": "C2", "onnx": "C4", "onnx-int8": "C3", "linear": "C7"}
MARKERS = "osDv^phd<>"
SCORES = ("eval_accuracy", "eval_f1")  # in the Trainer's log


def draw_plots(folder, report, labels, logits):
    """
    Draws the plots of a run into `folder/plots`, as PNG: `accuracy_latency`, `confusion`, `reliability`, `training`;
    what there is nothing to draw of is left out. Without matplotlib it only says so.

    Args:
        folder (`Path`): The output folder; its `trainer_state.json` is read.
        report (`dict`): Its `report.json`.
        labels (`np.ndarray` of shape `(num_rows,)`): Of the split that is reported; −100 rows do not count.
        logits (`dict[str, np.ndarray]`): By row of the table, `(num_rows, num_labels)`.

    Returns:
        `list[str]`: Names of the files that were drawn.
    """
    try:
        import matplotlib
    except ImportError:
        logger.warning("no plots: they need matplotlib (pip install 'kd_trainer[plot]')")
        return []
    figures = {
        "accuracy_latency": lambda: accuracy_latency(report),
        "confusion": lambda: confusion(report, labels, logits),
        "reliability": lambda: reliability(report, labels, logits),
        "training": lambda: training(folder),
    }
    with matplotlib.rc_context(STYLE):
        drawn = {f"{name}.png": render(figure) for name, draw in figures.items() if (figure := draw()) is not None}
    for name, png in drawn.items():  # all of them could be drawn
        write_png(png, folder / PLOTS / name)
    return list(drawn)


def check_matplotlib(what="the plot"):
    """Refuses to go on without matplotlib, which `what` (`str`) needs."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise InputError(f"{what} needs matplotlib: pip install 'kd_trainer[plot]'") from None


def new_figure(size, rows=1, columns=1, **kwargs):
    """A figure of its own, not one of pyplot's: `tuple` of it and its axes, `np.ndarray` of shape `(rows, columns)`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **kwargs)


def render(figure):
    """A figure as a PNG, `bytes`."""
    png = io.BytesIO()
    figure.savefig(png, format="png", bbox_inches="tight", pad_inches=0.08)
    return png.getvalue()


def write_png(png, path):
    """Writes a PNG (`bytes`)."""
    with written_whole(path) as partial:
        partial.write_bytes(png)


def save(figure, path):
    """Writes a figure as a PNG."""
    write_png(render(figure), path)


def accuracy_latency(report):
    """Accuracy against the time of one text, a point for each row; a dashed line where no time was measured."""
    rows = {name: row for name, row in table_rows(report).items() if row.get("accuracy") is not None}
    if not rows:
        return None
    figure, ((axes,),) = new_figure((7.6, 3.6))
    intervals = report.get("accuracy_interval", {})
    for (name, row), marker in zip(rows.items(), MARKERS * len(rows), strict=False):
        color, accuracy = COLORS.get(name), 100 * row["accuracy"]
        if row.get("latency_ms") is None:
            label = f"{name}: {accuracy:.1f} %, time not measured"
            axes.axhline(accuracy, color=color, linestyle="--", linewidth=1, label=label)
            continue
        ends = [
            [accuracy - 100 * low, 100 * high - accuracy] for low, high in [intervals.get(name, [row["accuracy"]] * 2)]
        ]
        axes.errorbar(
            row["latency_ms"], accuracy, np.maximum(0, ends).T, fmt=marker, color=color, markersize=8, capsize=3,
            elinewidth=1, markeredgecolor="white", label=f"{name}: {accuracy:.1f} %, {row['latency_ms']:.3g} ms",
        )  # fmt: skip
    times = [row["latency_ms"] for row in rows.values() if row.get("latency_ms") is not None]
    if times:
        axes.set_xscale("log")
        axes.set_xlim(min(times) / 2, max(times) * 2)
        set_plain_ticks(axes.xaxis, min(times) / 2, max(times) * 2)
    else:
        axes.set_xticks([])
    axes.margins(0.12, 0.1)
    axes.set_xlabel("one text on one CPU thread, milliseconds (left is faster)")
    axes.set_ylabel(f"{report['split']} accuracy, %")
    axes.grid(alpha=0.25)
    bars = "; bars: 95 % interval over texts" if intervals else ""
    axes.set_title(f"Accuracy against latency{bars}", loc="left", fontsize=9)
    figure.legend(loc="outside right upper", frameon=False)
    return figure


def set_plain_ticks(axis, low, high, ticks=None):
    """
    Ticks of a logarithmic axis as plain numbers: `ticks` (`list[float]`), or 1, 2 and 5 times powers of ten, as far as
    they are from `low` to `high`.
    """
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    powers = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    # Over many powers there is no room for more than these themselves.
    digits = (1, 2, 5) if len(powers) < 5 else (1,)
    ticks = ticks or [digit * 10.0**power for power in powers for digit in digits]
    axis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:g}"))


def confusion(report, labels, logits):
    """Which label is taken for which, of the teacher and of what the run is about side by side."""
    names = report["labels"]
    shown = [name for name in dict.fromkeys(("teacher", subject_of(logits))) if name in logits]
    if not shown or not (labels != -100).any() or len(names) > MOST_LABELS:
        return None
    ticks, families = axis_names(names)
    size = max(3.0, 1.2 + (0.42 if len(names) <= MOST_NUMBERS else 0.2) * len(names))
    fits = 0.065 * max(map(width, ticks)) < (size - 1.2) / len(names)  # inches of a character, of a column
    figure, (row,) = new_figure((size * len(shown) + 1.2, size + 0.6), 1, len(shown), sharey=True)
    for axes, name in zip(row, shown, strict=True):
        answers, true = labelled_rows(logits[name], labels)
        counts = confusion_matrix(true, answers.argmax(axis=-1), labels=range(len(names)))
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for true, said in np.argwhere(counts) if len(names) <= MOST_NUMBERS else []:
            axes.text(
                said, true, counts[true, said], ha="center", va="center", parse_math=False,
                size=7 if counts[true, said] < 1000 else 5.5, color="white" if shares[true, said] > 0.5 else "black",
            )  # fmt: skip
        axes.set_title(f"{name}: {100 * np.trace(counts) / counts.sum():.1f} % right", loc="left", fontsize=9)
        small = {"family": families, "fontsize": 8 if len(names) <= MOST_NUMBERS else 5.5}
        axes.set_xticks(range(len(names)), ticks, rotation=0 if fits else 90, **small)
        axes.set_yticks(range(len(names)), ticks, **small)
        axes.set_xlabel("its answer")
        axes.spines[:].set_visible(False)
    row[0].set_ylabel("right label")
    figure.colorbar(image, ax=row, shrink=0.7, label="share of the right label's texts")
    return figure


def reliability(report, labels, logits):
    """How often the model is right against how sure it is, as it is and with the validation split's temperature."""
    name = subject_of(logits)
    if name is None or not (labels != -100).any():
        return None
    found = report.get("calibration", {}).get(name, {})
    versions = [("as it is", 1.0, found.get("ece"))]
    if found.get("temperature") is not None:
        temperature = found["temperature"]
        versions.append((f"logits divided by {temperature:.2f}", temperature, found["scaled_ece"]))
    figure, grid = new_figure(
        (3.6 * len(versions) + 0.4, 4.4), 2, len(versions), sharex=True, sharey="row", height_ratios=(3, 1)
    )
    for (upper, lower), (what, temperature, error) in zip(grid.T, versions, strict=True):
        rows, confidence, accuracy = reliability_bins(logits[name], labels, temperature)
        filled = rows > 0
        edges = np.linspace(0, 1, len(rows) + 1)
        style = {"align": "edge", "width": edges[1], "edgecolor": "white", "linewidth": 0.6}
        upper.bar(edges[:-1][filled], accuracy[filled], color="C0", **style, label="share that is right")
        upper.plot([0, 1], [0, 1], color="0.4", linestyle="--", linewidth=1, label="as sure as right")
        upper.plot(
            confidence[filled], accuracy[filled], "o", color="C1", markersize=4, label="mean confidence of a bin"
        )
        lower.bar(edges[:-1], rows / rows.sum(), color="0.65", **style)
        ece = "" if error is None else f": ECE {100 * error:.2f} points"
        upper.set_title(f"{name}, {what}{ece}", loc="left", fontsize=8)
        lower.set_xlabel("confidence")
        upper.set_xlim(0, 1)
        upper.set_ylim(0, 1.02)
    grid[0, 0].set_ylabel("share that is right")
    grid[1, 0].set_ylabel("share of texts")
    figure.legend(
        *grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=8
    )
    return figure


def training(folder):
    """The parts of the loss and the scores of the validation split over the epochs."""
    history = read_history(Path(folder))
    losses = curves(history, is_loss)
    scores = curves(history, lambda key: key in SCORES)
    scores = {key: (epochs, [100 * value for value in values]) for key, (epochs, values) in scores.items()}
    panels = [panel for panel in ((losses, "loss"), (scores, "validation, %")) if panel[0]]
    if not panels:
        return None
    figure, (row,) = new_figure((4.2 * len(panels) + 0.4, 3.8), 1, len(panels))
    for axes, (found, label) in zip(row, panels, strict=True):
        parts = sorted({key.removeprefix("eval_") for key in found}, key=lambda part: (part != "loss", part))
        for key in sorted(found, key=lambda key: (key.startswith("eval_"), parts.index(key.removeprefix("eval_")))):
            epochs, values = found[key]
            part = key.removeprefix("eval_")
            dashed = key.startswith("eval_") and label == "loss"
            axes.plot(
                # Broad and pale, the whole of the loss is seen under a part that is all of it.
                epochs, values, linestyle="--" if dashed else "-", linewidth=3.5 if part == "loss" else 1.3,
                alpha=0.4 if part == "loss" else 1, markersize=3.5,
                marker=("s" if dashed else "o") if len(values) < 30 else None,
                color=f"C{parts.index(part)}", label=f"{part}, validation" if dashed else part,
            )  # fmt: skip
        drawn = [value for _, values in found.values() for value in values]
        if label == "loss" and 0 < 5 * min(drawn) < max(drawn):
            axes.set_yscale("log")
            set_plain_ticks(axes.yaxis, min(drawn) / 1.2, max(drawn) * 1.2)
        last = max(epochs[-1] for epochs, _ in found.values())
        axes.set_xlim(0, 1.03 * last)
        if last >= 1:
            axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, fontsize=7.5, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    return figure


def read_history(folder):
    """
    The Trainer's log of a run, `list[dict]`, each with its epoch; empty where there is none.

    Raises:
        `InputError`: When it is damaged.
    """
    path = folder / CHECKPOINT_STATE
    if not path.exists():
        return []
    history = read_json(path).get("log_history")
    for entry in history if isinstance(history, list) else [None]:
        if not is_drawable(entry):
            raise InputError(f"{path} is damaged (log_history: {entry!r:.60}): remove it, it is not drawn then")
    return history


def is_drawable(entry):
    """Whether an entry of the log is an object in which all that is drawn is a number, or None, and has an epoch."""
    if not isinstance(entry, dict):
        return False
    drawn = [value for name, value in entry.items() if is_loss(name) or name in SCORES]
    is_whole = all(isinstance(value, float | int | None) for value in drawn)
    return is_whole and (not drawn or is_number(entry.get("epoch")))


def is_loss(name):
    """Whether a name in the log is that of a loss or of a part of it."""
    return name == "loss" or name.endswith("_loss") and name != "train_loss"


def curves(history, is_wanted):
    """`dict[str, tuple[list, list]]`: epochs and values of every logged name that is wanted."""
    found = {}
    for entry in history:
        for key, value in entry.items():
            if is_wanted(key) and is_number(value):
                epochs, values = found.setdefault(key, ([], []))
                epochs.append(entry["epoch"])
                values.append(value)
    return found
