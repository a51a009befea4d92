"""One comparison with an exact answer, and a table of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

WIDTH = 120  # of the table where there is no terminal


@dataclass(frozen=True)
class Check:
    """A quantity computed exactly and by an estimator.

    Attributes:
        quantity: what was compared, for the table.
        exact: the exact answer, or its norm if it is a vector.
        estimated: the estimator's expectation, or its norm.
        deviation: the largest error of an entry; for sampled checks its z-score.
        sampled: True if the expectation was a mean over samples, and `deviation` is in standard errors.
        limit: `deviation` may not exceed this.
        variance_ratio: the estimator's total variance over that of the plain estimator on as much data, or None.
    """

    quantity: str
    exact: float
    estimated: float
    deviation: float
    sampled: bool
    limit: float
    variance_ratio: float | None = None

    @property
    def passed(self) -> bool:
        """Whether the deviation is within the limit; NaN is not."""
        return self.deviation <= self.limit


@dataclass(frozen=True)
class Report:
    """All checks of one verification; true if every one passed."""

    checks: Sequence[Check]

    @property
    def passed(self) -> bool:
        """Whether every check passed, and there was one."""
        return bool(self.checks) and all(check.passed for check in self.checks)

    def __bool__(self) -> bool:
        return self.passed

    def __str__(self) -> str:
        console = Console(width=WIDTH, no_color=True)
        with console.capture() as capture:
            console.print(self.table())
        return capture.get()

    def table(self) -> Table:
        """A line for every check."""
        table = Table(title="Estimators against exact answers")
        table.add_column("quantity", no_wrap=True)
        for heading in ("exact", "estimated", "error or z", "allowed", "var / plain", "verdict"):
            table.add_column(heading, justify="right", no_wrap=True)
        for check in self.checks:
            table.add_row(
                check.quantity,
                f"{check.exact:.6g}",
                f"{check.estimated:.6g}",
                f"z = {check.deviation:.2f}" if check.sampled else f"{check.deviation:.1e}",
                f"z ≤ {check.limit:g}" if check.sampled else f"{check.limit:.0e}",
                "" if check.variance_ratio is None else f"{check.variance_ratio:.3f}",
                "[green]ok[/green]" if check.passed else "[bold red]WRONG[/bold red]",
            )
        return table
