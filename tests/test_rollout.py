"""The rollout as a value: views, discounts, traces and values."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from rlopt.rollout import Rollout, in_pieces, map_observations


def by_hand(final_rows: list[int], dictionary: bool = False) -> Rollout:
    """T = 3, N = 2; state t of environment n shows 10·n + t; final observations show 100 and up."""
    states = (torch.arange(4.0)[:, None] + 10 * torch.arange(2.0)).unsqueeze(-1)
    finals = 100.0 + torch.arange(float(len(final_rows))).unsqueeze(-1)
    mask = torch.tensor([[True, True], [True, False], [True, True]])
    return Rollout(
        states={"a": states, "b": -states} if dictionary else states,
        actions=torch.zeros(3, 2),
        log_probs=torch.zeros(3, 2),
        rewards=torch.zeros(3, 2),
        terminated=torch.tensor([[False, True], [False, False], [False, False]]),
        truncated=torch.tensor([[True, False], [False, False], [False, True]]),
        mask=mask,
        final_rows=torch.tensor(final_rows, dtype=torch.int64),
        final_observations={"a": finals, "b": -finals} if dictionary else finals,
    )


def test_a_rollout_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        by_hand([]).rewards = torch.ones(3, 2)


def test_observations_and_next_observations_are_views_of_one_tensor_where_nothing_was_reset_within_a_step() -> None:
    rollout = by_hand([])
    assert rollout.observations[..., 0].tolist() == [[0, 10], [1, 11], [2, 12]]
    assert rollout.next_observations[..., 0].tolist() == [[1, 11], [2, 12], [3, 13]]
    assert rollout.observations.data_ptr() == rollout.states.data_ptr()
    assert rollout.next_observations.data_ptr() == rollout.states[1:].data_ptr()


@pytest.mark.parametrize("dictionary", [False, True])
def test_final_observations_replace_those_after_the_reset(dictionary: bool) -> None:
    rollout = by_hand([1, 4], dictionary)
    following = rollout.next_observations["a"] if dictionary else rollout.next_observations
    assert following[..., 0].tolist() == [[1, 100], [2, 12], [101, 13]]
    if dictionary:
        assert torch.equal(rollout.next_observations["b"], -following)
    states = rollout.states["a"] if dictionary else rollout.states
    assert states[1:, :, 0].tolist() == [[1, 11], [2, 12], [3, 13]], "the states themselves are left alone"


def test_termination_is_a_discount_of_zero_and_any_end_a_trace_of_zero() -> None:
    rollout = by_hand([])
    torch.testing.assert_close(rollout.discounts(0.9), torch.tensor([[0.9, 0.0], [0.9, 0.9], [0.9, 0.9]]))
    torch.testing.assert_close(rollout.traces(0.8), torch.tensor([[0.0, 0.0], [0.8, 0.8], [0.8, 0.0]]))


def test_every_state_passes_the_critic_once() -> None:
    for final_rows in ([], [1, 4]):
        seen: list[torch.Tensor] = []

        def critic(states: torch.Tensor, seen: list[torch.Tensor] = seen) -> torch.Tensor:
            seen.append(states)
            return states.squeeze(-1)

        rollout = by_hand(final_rows)
        values, next_values = rollout.values(critic)
        assert torch.equal(values, rollout.observations.squeeze(-1))
        assert torch.equal(next_values, rollout.next_observations.squeeze(-1))
        assert len(seen) == 1 + bool(final_rows)
        assert sum(len(states) for states in seen) == 4 * 2 + len(final_rows)


def test_values_carry_no_gradient() -> None:
    weight = torch.ones((), requires_grad=True)
    values, next_values = by_hand([1]).values(lambda states: weight * states.squeeze(-1))
    assert not values.requires_grad
    assert not next_values.requires_grad


def test_valid_rows_are_those_of_the_mask() -> None:
    rollout = by_hand([])
    assert rollout.valid_rows().tolist() == [0, 1, 2, 4, 5]
    assert rollout.num_valid == 5


def test_a_long_batch_is_cut_into_passes_that_give_the_same() -> None:
    observations = {"a": torch.arange(10.0), "b": torch.arange(10.0) ** 2}
    sizes: list[int] = []

    def function(inputs: dict[str, torch.Tensor], other: torch.Tensor) -> torch.Tensor:
        sizes.append(len(other))
        return inputs["a"] + inputs["b"] + other

    whole = in_pieces(function, observations, torch.ones(10))
    pieces = in_pieces(function, observations, torch.ones(10), rows=4)
    assert torch.equal(whole, pieces)
    assert sizes == [10, 4, 4, 2]


def test_map_observations_reaches_every_entry() -> None:
    assert map_observations(lambda x: x + 1, torch.zeros(2)).tolist() == [1, 1]
    assert {k: v.item() for k, v in map_observations(lambda x: x + 1, {"a": torch.zeros(()), "b": torch.ones(())}).items()} == {
        "a": 1,
        "b": 2,
    }


def test_scalar_rewards_refuse_a_vector() -> None:
    rollout = by_hand([])
    assert rollout.scalar_rewards("PPO") is rollout.rewards
    several = dataclasses.replace(rollout, rewards=torch.zeros(3, 2, 4))
    with pytest.raises(ValueError, match=r"env: it pays 4 rewards a step and PPO maximises one"):
        several.scalar_rewards("PPO")
