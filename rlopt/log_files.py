"""Log files put back to where a checkpoint was made, so that a run that goes on from there writes nothing twice."""

from __future__ import annotations

import csv
import os
import tempfile
from pathlib import Path

from stable_baselines3.common.logger import CSVOutputFormat, HumanOutputFormat, KVWriter, Logger, TensorBoardOutputFormat

EVENTS = "events.out.tfevents*"
PROGRESS, STEPS = "progress.csv", "time/total_timesteps"


def event_sizes(logger: Logger) -> dict[str, int]:
    """Bytes of TensorBoard's files in the logger's folder, by name, once all is written that was logged."""
    for output in logger.output_formats:
        if isinstance(output, TensorBoardOutputFormat):
            output.writer.flush()
    if logger.dir is None:
        return {}
    return {path.name: path.stat().st_size for path in sorted(Path(logger.dir).glob(EVENTS))}


def rewind_logs(folder: Path, sizes: dict[str, int], last: int, column: str = STEPS) -> None:
    """TensorBoard's files as long as they were, and the table without rows whose number in a column is beyond the last."""
    for path in folder.glob(EVENTS):
        size = sizes.get(path.name, 0)
        if not size:
            path.unlink()
        elif path.stat().st_size > size:
            os.truncate(path, size)
    rewind_table(folder / PROGRESS, column, last)


def rewind_table(path: Path, column: str, last: float) -> None:
    """Drop the rows of a CSV file whose number in this column is larger, or missing: a crash may cut the last one short."""
    if not path.exists():
        return
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    if not rows or column not in rows[0]:
        kept = []
    else:
        header, place = rows[0], rows[0].index(column)
        kept = [header, *(row for row in rows[1:] if len(row) == len(header) and _at_most(row[place], last))]
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(descriptor, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(kept)
    os.replace(temporary, path)


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
