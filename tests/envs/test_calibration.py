"""When worker processes are chosen: by a clock of the test's own, and only where no program would run twice."""

from __future__ import annotations

import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from rlopt import make_envs
from rlopt.envs import calibration, vector
from rlopt.envs.calibration import guarded_lines, processes_pay, seconds_per_step
from rlopt.envs.parallel import AsyncEnvironments
from rlopt.envs.sync import SyncEnvironments
from tests.scripted_envs import RandomScript, ScriptedEnv


class Timed(ScriptedEnv):
    """Its steps take as long as `durations` say, by a clock that nothing else moves."""

    def __init__(self, clock: list[float], durations: list[float]):
        super().__init__(RandomScript(), 0)
        self.clock, self.durations, self.closed = clock, durations, False

    def step(self, action: Any) -> Any:
        self.clock[0] += self.durations[min(len(self.durations) - 1, self.step_number)]
        return super().step(action)

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize(
    ("durations", "expected"),
    [([1e-5], 1e-5), ([0.5, 1e-3], 1e-3), ([2.0], 2.0)],
    ids=["cheap", "the first step is slow", "five steps whatever they take"],
)
def test_a_trial_tells_the_median_step(durations: list[float], expected: float, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(calibration.time, "perf_counter", lambda: clock[0])
    env = Timed(clock, durations)
    assert seconds_per_step(lambda: env) == pytest.approx(expected)
    assert env.closed
    assert clock[0] <= max(2 * calibration.BUDGET, calibration.LEAST_STEPS * expected + durations[0])


@pytest.mark.parametrize(
    ("seconds", "num_envs", "num_workers", "pays"),
    [
        (5e-6, 64, 16, False),  # CartPole: processes cost more than they save
        (4e-5, 16, 2, False),
        (1e-3, 2, 1, False),  # one worker saves nothing
        (1e-3, 2, 2, False),  # 0.8 ms are not worth the start
        (1e-3, 8, 2, True),
        (5e-3, 2, 2, True),
        (2e-4, 64, 16, True),
    ],
)
def test_processes_pay_where_steps_are_slow_and_many(seconds: float, num_envs: int, num_workers: int, pays: bool) -> None:
    assert processes_pay(seconds, num_envs, num_workers) == pays


def test_guarded_lines_are_those_that_only_the_main_program_runs() -> None:
    lines = [
        "import a",
        'if __name__ == "__main__":',
        "    a.b(",
        "        1)",
        "else:",
        "    a.c()",
        'if "__main__" == __name__: a.d()',
    ]
    source = "\n".join(lines)
    assert guarded_lines(source) == {3, 4, 7}


LOAD = f"""
import importlib.util
from threading import Thread
spec = importlib.util.spec_from_file_location("calibration", {calibration.__file__!r})
calibration = importlib.util.module_from_spec(spec)
spec.loader.exec_module(calibration)
def ask():
    print(calibration.processes_are_safe(), flush=True)
"""
PROGRAMS = {
    "guarded": (LOAD + "if __name__ == '__main__':\n    ask()\n", "True"),
    "not guarded": (LOAD + "ask()\n", "False"),
    "guarded elsewhere": (LOAD + "ask()\nif __name__ == '__main__':\n    pass\n", "False"),
    # the line of the helper's own code would be a guarded one of the program
    "asked by what it imports": (
        "import helper\n" + LOAD + "if __name__ == '__main__':\n" + "    pass\n" * 20,
        "False",
    ),
    "on a thread": (LOAD + "if __name__ == '__main__':\n    Thread(target=ask).start()\n", "False"),
    "in a worker": (
        LOAD + "import multiprocessing\nif __name__ == '__main__':\n"
        "    child = multiprocessing.get_context('fork').Process(target=ask)\n    child.start()\n    child.join()\n",
        "False",
    ),
}


@pytest.mark.parametrize("case", PROGRAMS)
def test_processes_are_safe_where_no_program_would_run_twice(case: str, tmp_path: Path) -> None:
    program, expected = PROGRAMS[case]
    path = tmp_path / "program.py"
    path.write_text(program)
    (tmp_path / "helper.py").write_text(LOAD + "\n" * 5 + "ask()\n")
    assert subprocess.run([sys.executable, path], capture_output=True, text=True, check=True).stdout.strip() == expected


def test_a_program_without_a_file_is_safe() -> None:
    done = subprocess.run([sys.executable, "-c", LOAD + "ask()"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vector, "usable_cores", lambda: 2)
    monkeypatch.setattr(vector, "processes_are_safe", lambda: True)


@pytest.mark.usefixtures("two_cores")
def test_slow_environments_get_processes_and_play_the_very_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vector, "seconds_per_step", lambda factory: 0.01)
    with closing(make_envs("FrozenLake-v1", 2)) as chosen, closing(make_envs("FrozenLake-v1", 2, "sync")) as single:
        assert isinstance(chosen, AsyncEnvironments)
        assert isinstance(single, SyncEnvironments)
        assert (chosen.backend_choice, single.backend_choice) == ("async: a step takes 0.01 s", "sync")
        np.testing.assert_array_equal(chosen.reset(3), single.reset(3))
        for t in range(40):
            one, other = (envs.step(np.array([t % 4, t % 3])) for envs in (chosen, single))
            np.testing.assert_array_equal(one.observations, other.observations)
            np.testing.assert_array_equal(one.terminated, other.terminated)


@pytest.mark.usefixtures("two_cores")
def test_cheap_environments_stay_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vector, "seconds_per_step", lambda factory: 1e-5)
    envs = make_envs("FrozenLake-v1", 2)
    assert isinstance(envs, SyncEnvironments)
    assert envs.backend_choice == "sync: a step takes 1e-05 s"


@pytest.mark.usefixtures("two_cores")
def test_an_environment_that_fails_in_the_trial_stays_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(factory: Any) -> float:
        raise ZeroDivisionError

    monkeypatch.setattr(vector, "seconds_per_step", failing)
    assert isinstance(make_envs("FrozenLake-v1", 2), SyncEnvironments)


@pytest.mark.usefixtures("two_cores")
def test_what_is_not_tried_stays_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """One environment, callables, ids of the program's own, one core, a program that would run twice."""

    timed = []

    def never(factory: Any) -> float:
        timed.append(factory)
        return 0.01

    def stays(env: Any, num_envs: int = 2) -> bool:
        made = make_envs(env, num_envs)
        return isinstance(made, SyncEnvironments) and made.backend_choice == "sync"

    monkeypatch.setattr(vector, "seconds_per_step", never)
    assert stays("FrozenLake-v1", 1)
    assert stays(lambda: gym.make("FrozenLake-v1"))
    gym.register("Mine-v0", lambda: ScriptedEnv(RandomScript(), 0))
    try:
        assert stays("Mine-v0")
    finally:
        del gym.registry["Mine-v0"]
    monkeypatch.setattr(vector, "processes_are_safe", lambda: False)
    assert stays("FrozenLake-v1")
    monkeypatch.setattr(vector, "processes_are_safe", lambda: True)
    monkeypatch.setattr(vector, "usable_cores", lambda: 1)
    assert stays("FrozenLake-v1")
    assert not timed
