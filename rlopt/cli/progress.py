"""A progress bar that costs training nothing: it reads the agent's counters while it redraws."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from stable_baselines3.common.utils import safe_mean

from rlopt.agents.base import Agent


class TrainingProgress(Progress):
    """Steps, the mean return of the last episodes, time. A context manager; on standard error."""

    def __init__(self, agent: Agent, total_timesteps: int, enabled: bool):
        self.agent = agent
        super().__init__(
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TextColumn("return {task.fields[mean_return]:.4g}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            refresh_per_second=4,
            disable=not enabled,
        )
        self.add_task("training", total=total_timesteps, mean_return=float("nan"))

    def get_renderables(self) -> Iterable[RenderableType]:
        for task in self.tasks:
            task.completed = min(self.agent.num_timesteps, task.total or 0)
            task.fields["mean_return"] = safe_mean([episode["r"] for episode in list(self.agent.ep_info_buffer)])
        yield from super().get_renderables()
