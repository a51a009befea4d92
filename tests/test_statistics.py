"""Episode statistics: returns and lengths of the rows that count."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rlopt.statistics import EpisodeStatistics

NOBODY = np.zeros(2, bool)


def test_returns_and_lengths_are_those_of_each_environment() -> None:
    statistics = EpisodeStatistics(2)
    for rewards, done in (([1.0, 10.0], [0, 0]), ([2.0, 20.0], [0, 1]), ([3.0, 5.0], [1, 0])):
        statistics.add(np.array(rewards), None, np.array(done, bool), [{}, {}])
    assert [(episode["r"], episode["l"]) for episode in statistics.recent] == [(30.0, 2), (6.0, 3)]
    assert statistics.returns.tolist() == [0.0, 5.0]
    assert statistics.num_episodes == 2
    statistics.begin(2)
    assert statistics.lengths.tolist() == [0, 0]
    assert statistics.num_episodes == 2


def test_rows_that_do_not_count_are_left_out() -> None:
    statistics = EpisodeStatistics(2)
    statistics.add(np.array([1.0, 1e6]), np.array([True, False]), NOBODY, [{}, {}])
    assert statistics.returns.tolist() == [1.0, 0.0]
    assert statistics.lengths.tolist() == [1, 0]


def test_only_the_last_episodes_are_kept() -> None:
    statistics = EpisodeStatistics(1, window=3)
    for reward in range(10):
        statistics.add(np.array([float(reward)]), None, np.array([True]), [{}])
    assert [episode["r"] for episode in statistics.recent] == [7.0, 8.0, 9.0]
    assert statistics.num_episodes == 10


def test_a_return_of_several_rewards_is_a_list() -> None:
    statistics = EpisodeStatistics(2)
    for done in (NOBODY, np.array([True, False])):
        statistics.add(np.array([[1.0, 2.0], [3.0, 4.0]]), None, done, [{}, {}])
    assert statistics.recent[0]["r"] == [2.0, 4.0]
    assert statistics.returns.tolist() == [[0.0, 0.0], [6.0, 8.0]]


def test_monitors_account_wins_and_an_end_that_it_does_not_report_is_no_episode() -> None:
    statistics = EpisodeStatistics(2, monitored=True)
    infos: list[dict[str, Any]] = [{}, {"episode": {"r": 7.5, "l": 3, "t": 0.1}}]
    statistics.add(np.array([1.0, 1.0]), None, np.array([True, True]), infos)
    assert list(statistics.recent) == [{"r": 7.5, "l": 3, "t": 0.1}]


def test_successes_are_counted_where_they_are_told() -> None:
    statistics = EpisodeStatistics(2)
    statistics.add(np.zeros(2), None, np.array([True, True]), [{"is_success": True}, {}])
    statistics.add(np.zeros(2), None, np.array([True, False]), [{"is_success": np.False_}, {"is_success": True}])
    assert list(statistics.successes) == [1.0, 0.0]


def test_whoever_listens_hears_of_every_episode() -> None:
    heard: list[dict[str, Any]] = []
    statistics = EpisodeStatistics(2, window=1)
    statistics.on_episode = heard.append
    statistics.add(np.array([1.0, 2.0]), None, np.array([True, True]), [{}, {}])
    assert [(episode["env"], episode["r"]) for episode in heard] == [(0, pytest.approx(1.0)), (1, pytest.approx(2.0))]
