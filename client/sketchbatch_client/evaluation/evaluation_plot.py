"""Write an evaluation as one picture: bars of the metrics with intervals, and the confusion matrix of each model."""

from pathlib import Path
from typing import Any

from ..atomic import replacing
from .evaluating import Comparison, Evaluation
from .stats.intervals import Measured
from .stats.metrics import TITLES

_BARS_INCHES = 5.6, 4.2  # width and height of the bar chart
_DPI = 160


def write_plot(result: Evaluation | Comparison, output: Path, file_format: str) -> None:
    """Write the picture atomically; `file_format` is "png" or "svg"."""
    from .figures import Matrix, styled_figure  # imported late: no other command needs matplotlib

    named = result.named if isinstance(result, Comparison) else [(result.name, result)]
    matrices = [Matrix.of_confusion(each.confusion, each.labels) for _, each in named]
    widths = [_BARS_INCHES[0], *(each.size[0] for each in matrices)]
    height = max(_BARS_INCHES[1], *(each.size[1] + 0.5 for each in matrices))
    with styled_figure(sum(widths), height, grid="y") as figure:
        axes: Any = figure.subplots(1, len(widths), width_ratios=widths)
        _draw_bars(axes[0], named)
        for own_axes, matrix, (name, each) in zip(axes[1:], matrices, named, strict=True):
            matrix.draw(own_axes)
            occurring = each.tested_labels
            part = f"\nthe {len(matrix.columns)} most confused classes" if len(matrix.rows) < occurring else ""
            own_axes.set_title(f"{name.replace(' at ', chr(10) + 'at ')}\nconfusion matrix{part}", fontsize=10)
        with replacing(output) as partial:
            generator = {"Creator": "Sketchbatch", "Date": None}  # nothing of the machine or the time
            metadata = generator if file_format == "svg" else {"Software": "Sketchbatch"}
            figure.savefig(partial, format=file_format, dpi=_DPI, metadata=metadata)


def _draw_bars(axes: Any, named: list[tuple[str, Evaluation]]) -> None:
    from .figures import BLUE, ORANGE

    width = 0.8 / len(named)
    for index, ((name, evaluation), colour) in enumerate(zip(named, (BLUE, ORANGE), strict=False)):
        for position, measured in enumerate(evaluation.figures.measured.values()):
            place = position + (index - (len(named) - 1) / 2) * width
            label = _legend(name, evaluation) if position == 0 else ""
            _draw_bar(axes, place, measured, {"width": width * 0.92, "color": colour, "label": label})
    titles = [title.replace(" ", "\n") for title, _ in TITLES.values()]
    axes.set_xticks(range(len(titles)), titles, fontsize=9)
    lowest = min(0.0, *axes.get_ylim())
    axes.set(ylim=(lowest, 1.1), yticks=[0, 0.2, 0.4, 0.6, 0.8, 1.0])
    axes.set_title("Metrics with 95 % confidence intervals", fontsize=10)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.5 / axes.figure.get_figheight()), frameon=False, fontsize=9)
    axes.grid(visible=False, axis="x")


def _legend(name: str, evaluation: Evaluation) -> str:
    """Return the text about a model: what it was judged on, and whether this includes its training drawings.

    The means over classes leave out labels without drawings.
    """
    text = f"{name} on {evaluation.figures.rows:,} drawings"
    labels, tested = len(evaluation.labels), evaluation.tested_labels
    if tested < labels:
        text += f" of {tested:,} of its {labels:,} labels"
    return f"{text}\n{evaluation.trained_on}" if evaluation.trained_on and evaluation.trained_on.matches else text


def _draw_bar(axes: Any, place: float, measured: Measured, style: dict[str, Any]) -> None:
    """Draw one bar with its interval and its value; write the reason where there is no value."""
    from .figures import INK

    if not measured.is_defined:
        axes.bar(place, 0, **style)  # keeps the entry in the legend
        axes.text(place, 0.02, str(measured), rotation=90, ha="center", va="bottom", fontsize=8, color=INK)
        return
    axes.bar(place, measured.value, **style)
    top = measured.value
    if measured.interval:
        low, top = measured.interval
        ends = [[max(measured.value - low, 0.0)], [max(top - measured.value, 0.0)]]
        axes.errorbar(place, measured.value, ends, color=INK, capsize=4, linewidth=1.2)
    axes.text(place, max(top, 0.0) + 0.012, f"{measured.value:.3f}", ha="center", va="bottom", fontsize=8, color=INK)
