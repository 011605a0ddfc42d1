"""Hands the answer of a grid to the experiment tracker."""

from __future__ import annotations

from nangrid.analysis.evidence import Judged
from nangrid.analysis.onsets import factor_columns, onset_table
from nangrid.analysis.verdict import counted, event_cards, event_sentence
from nangrid.records.grid import GridDirectory
from nangrid.tracking.grid_run import log_grid


def track_grid(grid: GridDirectory, judged: Judged, *, mode: str, project: str, entity: str | None) -> None:
    """Log a W&B run with the verdict and the onset of each cell; no text of the data goes into it."""
    cards = event_cards(judged.grid, judged.chosen)
    table = onset_table(judged.records, judged.autopsies)
    shown = [*factor_columns(table), "status", "onset_step", "onset_clock", "mechanism"]
    rows = table.astype(object).where(table.notna(), None).set_index("cell_id")[shown].to_dict("index")
    verdict = {"verdict": counted(judged.records, cards)}
    verdict |= {f"event_{number}": event_sentence(card) for number, card in enumerate(cards, 1)}
    onsets = {str(cell_id): {str(column): value for column, value in row.items()} for cell_id, row in rows.items()}
    log_grid(
        mode=mode,
        project=project,
        entity=entity,
        directory=grid.path,
        grid_id=grid.grid_id,
        verdict=verdict,
        onsets=onsets,
    )
