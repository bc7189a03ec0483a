"""Write an evaluation as a self-contained HTML page without scripts.

The page describes the first model in full. For a second model the page shows only the metrics, the recall of each class
and McNemar's test.
"""

from pathlib import Path

from .. import html_page
from .evaluating import Comparison, Evaluation
from .quality import Mistake
from .stats.drift import LIKELY_REASONS, stored_rows
from .stats.mcnemar import format_p_value


def write_page(result: Evaluation | Comparison, output: Path) -> None:
    """Write the page atomically; read the bitmaps of the mistakes that it shows from their files again."""
    from .figures import picture  # imported late: no other command needs matplotlib
    from .quality_page import quality_values

    paired = result.paired if isinstance(result, Comparison) else None
    named = result.named if isinstance(result, Comparison) else [(result.name, result)]
    (name, first), (other_name, other) = named[0], named[1] if paired else ("", None)

    def show(mistake: Mistake) -> tuple[str, str]:
        bitmap = first.drawings.bitmaps[mistake.file][mistake.row : mistake.row + 1][0]
        return picture(bitmap), "{}, row {}".format(*first.drawings.origin(mistake.file, mistake.row))

    html_page.write_page(
        output,
        "sketchbatch_client/evaluation/evaluation.html.j2",
        **quality_values(first, show, other),
        title=f"{name} on {first.figures.rows:,} drawings",
        is_synthetic=first.drawings.source.startswith("synthetic"),
        first=first,
        name=name,
        other_name=other_name,
        named=named,
        paired=paired,
        p_value=format_p_value(paired.p_value) if paired else "",
        verdict=paired.verdict(name, other_name) if paired else "",
        cautions=result.cautions if isinstance(result, Comparison) else [],
        stored_rows=stored_rows(first.model.metrics),
        is_beyond_chance=any(each.is_chance is False for each in first.drift.values()),
        likely_reasons=LIKELY_REASONS,
    )
