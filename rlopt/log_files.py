"""Log files put back to where a checkpoint was made, so that a run that goes on from there writes nothing twice."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

from stable_baselines3.common.logger import CSVOutputFormat, HumanOutputFormat, KVWriter, Logger, TensorBoardOutputFormat

EVENTS = "events.out.tfevents*"
PROGRESS = "progress.csv"


def logged(logger: Logger) -> dict[str, Any]:
    """How far the log files in the logger's folder are, once all is written: bytes of TensorBoard's, rows of the table."""
    for output in logger.output_formats:
        if isinstance(output, TensorBoardOutputFormat):
            output.writer.flush()
    if logger.dir is None:
        return {"sizes": {}, "rows": 0}
    folder = Path(logger.dir)
    sizes = {path.name: path.stat().st_size for path in sorted(folder.glob(EVENTS))}
    table = folder / PROGRESS
    return {"sizes": sizes, "rows": len(_rows(table)) if table.exists() else 0}


def rewind_logs(folder: Path, known: Any) -> None:
    """TensorBoard's files and the table as far as they were, see `logged`; empty where nothing is known of them."""
    known = known if isinstance(known, dict) else {}
    sizes, rows = known.get("sizes"), known.get("rows")
    for path in folder.glob(EVENTS):
        size = sizes.get(path.name) if isinstance(sizes, dict) else None
        if not isinstance(size, int) or size <= 0:
            path.unlink()
        elif path.stat().st_size > size:
            os.truncate(path, size)
    if (folder / PROGRESS).exists():
        _rewrite(folder / PROGRESS, _rows(folder / PROGRESS)[: rows if isinstance(rows, int) and rows > 0 else 0])


def rewind_table(path: Path, column: str, last: float) -> None:
    """Drop the rows of a CSV file whose number in this column is larger, or missing: a crash may cut the last one short."""
    if not path.exists():
        return
    rows = _rows(path)
    if not rows or column not in rows[0]:
        _rewrite(path, [])
        return
    header, place = rows[0], rows[0].index(column)
    _rewrite(path, [header, *(row for row in rows[1:] if len(row) == len(header) and _at_most(row[place], last))])


def _rows(path: Path) -> list[list[str]]:
    """All rows of a table, its header first."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def _rewrite(path: Path, rows: list[list[str]]) -> None:
    """A table that appears whole or not at all."""
    temporary = path.with_name(f".{path.name}.new")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
    temporary.replace(path)


def continued_logger(folder: Path, outputs: list[KVWriter]) -> Logger:
    """A logger that goes on with the files of a folder, beside other outputs."""
    own: list[KVWriter] = [ContinuedTable(str(folder / PROGRESS)), TensorBoardOutputFormat(str(folder))]
    return Logger(str(folder), [*outputs, *own])


class ContinuedTable(CSVOutputFormat):
    """SB3's table of all that is logged, appended to a file that may have rows already."""

    def __init__(self, filename: str):
        lines = Path(filename).read_text(encoding="utf-8") if Path(filename).exists() else ""
        super().__init__(filename)  # which empties it
        self.keys = next(csv.reader([lines.partition("\n")[0]]), [])
        self.file.write(lines)
        self.file.flush()


def tables_on(stream: object) -> list[KVWriter]:
    """SB3's tables on a text stream."""
    return [HumanOutputFormat(stream)]  # type: ignore[arg-type]


def _at_most(text: str, last: float) -> bool:
    try:
        return float(text) <= last
    except ValueError:
        return False
