"""Training of several agents that differ by their seed alone, iteration by iteration as each would by itself.

Numbers are those of training one by one but for the rounding of batched matrix products; since learning is chaotic, curves
part after some thousand steps as they do between two machines.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from gymnasium import spaces

from rlopt.agents.base import Agent
from rlopt.agents.ppo import PPO, Rates
from rlopt.agents.proximal import Batch
from rlopt.arguments import check_number
from rlopt.checkpoints import Checkpoints, NoCheckpoints
from rlopt.compiled_descent import SECONDS_OF_COMPILING, has_no_pure_step
from rlopt.device import threads_for
from rlopt.envs.finite_horizon import FiniteHorizonVectorEnv
from rlopt.envs.gymnasium_vector import GymnasiumEnvironments
from rlopt.flight_recorder import FlightRecorder, NoRecorder
from rlopt.logging import add_first_page, record_iteration
from rlopt.together.collecting import JointCollector, native
from rlopt.together.descent import Followed, JointDescent
from rlopt.together.environments import why_not_joined

# By a compiled step for all agents: not compiled, its batching costs more than its arithmetic. An estimate on the
# low side: four agents with minibatches of 64 rows were seen to save 9 ms.
SECONDS_SAVED_BY_BATCH = 5e-3
WITHOUT_BATCHED_FORM = ("target_kl", "utility", "memory")


def why_not_together(agents: Sequence[Agent]) -> str | None:
    """Why these agents cannot be trained together, or None if they can: what they have that has no batched form."""
    for agent in agents:
        if type(agent) is not PPO:
            return f"{type(agent).__name__} has no batched form, PPO has"
        if agent.collector is None:
            return "an agent has no environment"
        envs = agent.environments
        if type(envs) is not GymnasiumEnvironments or not isinstance(envs.env, FiniteHorizonVectorEnv):
            return "their environments are not native (backend='native')"
        if not isinstance(agent.policy.observation_space, spaces.Box) or len(agent.policy.observation_space.shape) != 1:
            return "observations that are not vectors have no batched form"
        for name in WITHOUT_BATCHED_FORM:
            if getattr(agent, name):
                return f"{name} has no batched form"
        if agent.device.type != "cpu":
            return f"their networks are on {agent.device}"
        if not agent.modules_known:
            return "networks of a kind that is not known to be a function of tensors alone"
        if (reason := has_no_pure_step(agent.descent)) is not None:
            return reason
    first = agents[0]
    if any(not _alike(first, agent) for agent in agents[1:]):
        return "the agents differ by more than their seed"
    return why_not_joined([native(agent.collector) for agent in agents if agent.collector is not None])


def learn_together(
    agents: Sequence[PPO],
    total_timesteps: int,
    log_interval: int | None = 1,
    tb_log_name: str | None = None,
    *,
    checkpoints: Sequence[Checkpoints] | None = None,
    recorders: Sequence[FlightRecorder] | None = None,
    on_iteration: Callable[[], None] | None = None,
) -> None:
    """Train all of them, each for at least `total_timesteps` environment steps of its own.

    What each has at the end (parameters, optimiser, environments amid their episodes, random numbers, logs) is what
    `learn` would have left, so that it can be saved, evaluated, and go on alone.

    Args:
        agents: alike but for their seeds, with native environments of their own; see `why_not_together`.
        total_timesteps: of every agent.
        log_interval: iterations between log dumps; None logs nothing.
        tb_log_name: of each agent's folder under its `tensorboard_log`; the algorithm's name by default.
        checkpoints: one for each agent, with a folder of its own.
        recorders: one for each agent, which undoes its updates that went wrong; what they keep is played again to rounding.
        on_iteration: called after each.

    Raises:
        ValueError: agents that cannot be trained together; no agents, or not as many checkpoints or recorders.
        EnvironmentFault: an environment returned something that cannot be trained on.
        FloatingPointError: an update gave parameters that are not finite, or all that a recorder undid did not help; the
            parameters before it are kept.
    """
    if not agents:
        raise ValueError("agents: expected at least one, got none")
    _check_together(agents, "agents: they cannot be trained together")
    check_number("total_timesteps", total_timesteps)
    if log_interval is not None:
        check_number("log_interval", log_interval, positive=True, whole=True)
    runs = _one_each("checkpoints", checkpoints, len(agents), NoCheckpoints)
    watching = _one_each("recorders", recorders, len(agents), NoRecorder)
    first, everyone = agents[0], list(zip(agents, runs, watching, strict=True))
    with ExitStack() as stack:
        for run in runs:
            run.open()
            stack.callback(run.close)
        for agent, run, recorder in everyone:
            agent._begin_learning(int(total_timesteps), True, tb_log_name or type(agent).__name__, run)
            add_first_page(agent.logger, agent.layout)
            recorder.training_begins()
            stack.callback(recorder.training_ends, agent)
        iteration, *_ = [run.begin(agent, None) for agent, run, _ in everyone]
        _check_together(agents, "checkpoints: what they hold cannot go on together, only each by itself")
        stack.enter_context(threads_for(first.state.theta))
        collector, descent = JointCollector(agents), JointDescent(agents, _worth_compiling(agents))
        while first.num_timesteps < first._total_timesteps:
            collector.timers.reset()
            began = time.perf_counter()
            learned = _iterate(agents, watching, collector, descent)
            iteration += 1
            if log_interval is not None and iteration % log_interval == 0:
                seconds = time.perf_counter() - began
                for agent, batch, rates, following in learned:
                    metrics = agent.metrics(following.state, batch, rates, following.log)
                    record_iteration(agent.logger, metrics, collector.timers, seconds)
                    agent.dump_logs(iteration)
            if on_iteration is not None:
                on_iteration()
            going_on = [run.iteration_ended(agent, None, iteration) for agent, run, _ in everyone]
            if not all(going_on):  # every one has its file
                break
        for agent, run, _ in everyone:
            run.training_ended(agent, None, iteration)


def _iterate(
    agents: Sequence[PPO], recorders: Sequence[FlightRecorder], collector: JointCollector, descent: JointDescent
) -> list[tuple[PPO, Batch, Rates, Followed]]:
    """One iteration of all: rollouts, advantages, minibatch descent; what each was made of and came to."""
    first = agents[0]
    for agent, recorder in zip(agents, recorders, strict=True):
        recorder.update_begins(agent)
    progress = first._current_progress_remaining
    rollouts = collector.rollouts(first.n_steps)
    if first.schedule_from == "rollout_end":
        progress = first._current_progress_remaining
    rates = [agent.rates(progress) for agent in agents]
    batches = [agent.advantages(agent.state.theta, rollout) for agent, rollout in zip(agents, rollouts, strict=True)]
    followed = descent.update(batches, rates)
    collector.part()
    watched = zip(agents, recorders, followed, strict=True)
    accepted = [recorder.accepts(agent, following.state, following.soundness) for agent, recorder, following in watched]
    for agent, sound, following in zip(agents, accepted, followed, strict=True):
        if sound:
            agent._adopt(following.state)
    return list(zip(agents, batches, rates, followed, strict=True))


def _check_together(agents: Sequence[Agent], what: str) -> None:
    """Raises ValueError unless they can be trained together."""
    if (reason := why_not_together(agents)) is not None:
        raise ValueError(f"{what}: {reason}")


def _one_each(name: str, given: Sequence[Any] | None, number: int, default: Callable[[], Any]) -> Sequence[Any]:
    """What was given for every agent.

    Raises:
        ValueError: too few, too many, or one object for two.
    """
    if given is None:
        return [default() for _ in range(number)]
    if len(given) != number or len({id(one) for one in given}) < number:
        raise ValueError(f"{name}: expected one for each of {number} agents, got {len({id(one) for one in given})}")
    return given


def _worth_compiling(agents: Sequence[PPO]) -> bool:
    """Whether the batched step is compiled: as the agents say, and "auto" by what it saves all of them."""
    first = agents[0]
    if first.compile != "auto":
        return first.compiled
    num_steps = first._total_timesteps // first.batch_size * first.n_epochs
    return first.compile_seconds_saved > -math.inf and num_steps * SECONDS_SAVED_BY_BATCH > SECONDS_OF_COMPILING


def _alike(first: Agent, second: Agent) -> bool:
    """Whether two agents differ by their seed and what they have learned alone."""
    return _make(first) == _make(second) and all(
        torch.equal(mine, theirs) for mine, theirs in zip(first.policy.buffers(), second.policy.buffers(), strict=True)
    )


def _make(agent: Agent) -> dict[str, Any]:
    """What is to be the same."""
    left_out = ("seed", "tensorboard_log", "verbose")
    assert agent.environments is not None
    return {
        **{name: value for name, value in agent.hyperparameters().items() if name not in left_out},
        "networks": (agent.policy_class, [(name, p.shape, p.requires_grad) for name, p in agent.policy.named_parameters()]),
        "env": (agent.environments.name, agent.n_envs),
        "num_timesteps": agent.num_timesteps,
    }
