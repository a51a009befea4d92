"""A progress bar that costs training nothing: it reads the agent's counters while it redraws."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from rlopt.agents.base import Agent
from rlopt.statistics import as_text


class TrainingProgress(Progress):
    """Steps, the mean return of the last episodes, time. A context manager; on standard error."""

    def __init__(self, agent: Agent, total_timesteps: int, enabled: bool):
        self.agent = agent
        super().__init__(
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TextColumn("return {task.fields[mean_return]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            refresh_per_second=4,
            disable=not enabled,
        )
        self.add_task("training", total=total_timesteps, mean_return="nan")

    def get_renderables(self) -> Iterable[RenderableType]:
        for task in self.tasks:
            task.completed = min(self.agent.num_timesteps, task.total or 0)
            task.fields["mean_return"] = as_text(self.agent.statistics.mean_return, ".4g")
        yield from super().get_renderables()
