"""Losses of completions: identities, hand-computed numbers, and how they are accumulated."""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("transformers")

from rlopt.lm.batches import make_batch
from rlopt.lm.log_probs import Reader
from rlopt.lm.losses import (
    grpo_loss,
    ipo_loss,
    leave_one_out,
    policy_loss,
    rloo_loss,
    standardised,
    token_advantages,
)
from rlopt.lm.reference import reference_of
from rlopt.lm.regression import accumulate_gradient, optimiser_batches
from tests.lm.small_models import END, gpt2, settings
from tests.lm.test_log_probs import tokens

ETA = torch.tensor(0.7, dtype=torch.float64)


def problem(tmp_path, seed=0, sizes=4, **kwargs):
    """A float64 GPT-2 somewhere away from π_t, and a batch of two groups of four (or four of two) completions."""
    args = settings(tmp_path, num_generations=sizes, per_device_train_batch_size=8, **kwargs)
    model = gpt2(dtype=torch.float64)
    noise = torch.Generator().manual_seed(seed)
    prompts = [[1, 2, 3]] * 4 + [[4, 5]] * 4
    completions = torch.randint(11, (8, 4), generator=noise).tolist()
    completions[1], completions[6] = [2, END], [END]
    head = torch.nn.Linear(16, 1).double() if args.loss == "ppo" else None
    reader = Reader(args.temperature, rows=3, value_head=head)
    scores = torch.rand(8, generator=noise, dtype=torch.float64)
    reference = None
    if args.needs_reference:
        reference = reference_of(gpt2(seed=1, dtype=torch.float64), True)
    batch, _ = make_batch(args, model, reference, reader, tokens(prompts, completions), scores)
    for parameter in model.parameters():
        parameter.data += 0.01 * torch.randn(parameter.shape, generator=noise, dtype=torch.float64)
    return args, model, reader, batch


def gradient(model, loss=None):
    if loss is not None:
        model.zero_grad()
        loss.backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("sizes", [2, 4, 8])
def test_the_first_gradient_is_minus_4_eta_times_rloos(tmp_path, sizes):
    args, model, reader, batch = problem(tmp_path, sizes=sizes, beta=0.0)
    read = reader.read(model, batch.tokens)
    here = replace(batch, old=read.log_probs.detach(), anchor=read.log_probs.detach())
    ours = gradient(model, policy_loss(args, ETA, here, read))
    theirs = gradient(
        model, rloo_loss(reader.read(model, batch.tokens).sequences, None, leave_one_out(batch.rewards, sizes), None)
    )
    torch.testing.assert_close(ours, 4 * ETA * theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kl_mode", ["reward", "prox"])
@pytest.mark.parametrize("form", ["code", "paper"])
@pytest.mark.parametrize("piece", [1, 3, 8])
def test_two_passes_give_the_gradient_of_one(tmp_path, kl_mode, form, piece):
    args, model, reader, batch = problem(tmp_path, beta=0.3, kl_mode=kl_mode, loss_form=form)
    direct = gradient(model, policy_loss(args, ETA, batch, reader.read(model, batch.tokens)))
    model.zero_grad()
    in_two = replace(args, two_pass=True, per_device_train_batch_size=piece, gradient_accumulation_steps=8)
    accumulate_gradient(in_two, ETA, model, reader, batch)
    torch.testing.assert_close(gradient(model), direct, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("loss", ["rebel", "rloo", "grpo", "ppo", "ipo"])
def test_micro_batches_of_whole_groups_give_the_gradient_of_the_batch(tmp_path, loss):
    args, model, reader, batch = problem(tmp_path, loss=loss)
    whole = gradient(model, policy_loss(args, ETA, batch, reader.read(model, batch.tokens)))
    model.zero_grad()
    accumulate_gradient(replace(args, per_device_train_batch_size=4, gradient_accumulation_steps=2), ETA, model, reader, batch)
    torch.testing.assert_close(gradient(model), whole, rtol=1e-10, atol=1e-12)


def test_torn_groups_would_give_another_gradient(tmp_path):
    """The negative control of the two tests above."""
    args, model, reader, batch = problem(tmp_path, beta=0.0)
    whole = gradient(model, policy_loss(args, ETA, batch, reader.read(model, batch.tokens)))
    model.zero_grad()
    for rows in (torch.tensor([0, 1, 4, 5]), torch.tensor([2, 3, 6, 7])):
        part = batch.rows(rows)
        (policy_loss(args, ETA, part, reader.read(model, part.tokens)) / 2).backward()
    assert float((gradient(model) - whole).norm() / whole.norm()) > 0.05


def test_epochs_of_optimiser_steps_have_every_group_once_and_whole(tmp_path):
    args, _, _, batch = problem(tmp_path, sizes=2)
    parts = list(optimiser_batches(replace(args, per_device_train_batch_size=2), batch, torch.Generator().manual_seed(0)))
    assert [len(part) for part in parts] == [2] * 4
    assert all(len(part.groups.unique()) == 1 for part in parts)
    assert sorted(int(part.groups[0]) for part in parts) == [0, 1, 2, 3]


def test_the_kl_goes_into_the_reward_with_the_old_policy_and_no_gradient(tmp_path):
    _, _, _, batch = problem(tmp_path, beta=0.3)
    expected = batch.scores - 0.3 * (batch.old.sum(1) - batch.reference.sum(1))
    torch.testing.assert_close(batch.rewards, expected)
    assert not batch.rewards.requires_grad
    _, _, _, prox = problem(tmp_path, beta=0.3, kl_mode="prox")
    torch.testing.assert_close(prox.rewards, prox.scores)


def test_advantages_by_hand():
    rewards = torch.tensor([1.0, 2.0, 6.0, 0.0, 0.0, 0.0])
    torch.testing.assert_close(leave_one_out(rewards, 3), torch.tensor([-3.0, -1.5, 4.5, 0.0, 0.0, 0.0]))
    deviation = torch.tensor([1.0, 2.0, 6.0]).std() + 1e-4
    expected = torch.cat([(rewards[:3] - 3.0) / deviation, torch.zeros(3)])
    torch.testing.assert_close(standardised(rewards, 3), expected)


def test_clipped_rloo_is_rloo_at_the_old_policy_and_stops_beyond_the_range():
    old, advantages = torch.tensor([-1.0, -2.0]), torch.tensor([0.5, -0.5])
    at_old = old.clone().requires_grad_()
    rloo_loss(at_old, old, advantages, 0.2).backward()
    torch.testing.assert_close(at_old.grad, -advantages / 2)
    far = (old + torch.tensor([0.3, -0.3])).requires_grad_()
    rloo_loss(far, old, advantages, 0.2).backward()
    assert far.grad.tolist() == [0.0, 0.0]


def test_grpo_by_hand():
    log_probs = torch.tensor([[-1.0, -2.0], [-1.5, 0.0]])
    mask = torch.tensor([[True, True], [True, False]])
    old, reference = log_probs - 0.1, torch.tensor([[-1.0, -2.5], [-1.0, 0.0]])
    ratio = torch.tensor(0.1).exp()
    difference = (reference - log_probs)[mask]
    k3 = difference.exp() - difference - 1
    penalty = torch.stack([k3[:2].mean(), k3[2]])
    expected = -torch.stack([2.0 * ratio, -1.0 * ratio]).sub(0.04 * penalty).mean()
    torch.testing.assert_close(grpo_loss(log_probs, old, mask, torch.tensor([2.0, -1.0]), 0.2, reference, 0.04), expected)


def test_ipo_regresses_winners_minus_losers_and_skips_ties():
    sequences, anchor = torch.tensor([-1.0, -3.0, -2.0, -2.0]), torch.tensor([-1.5, -2.0, -2.0, -1.0])
    loss = ipo_loss(sequences, anchor, torch.tensor([0.0, 9.0, 1.0, 1.0]), torch.tensor([0, 0, 1, 1]), beta=0.25)
    assert float(loss) == pytest.approx((-1.0 - 0.5 - 2.0) ** 2 / 2)


def test_token_advantages_end_with_the_completion():
    mask = torch.tensor([[True, True, True], [True, False, False]])
    rewards = torch.tensor([[0.1, 0.0, 1.0], [2.0, 0.0, 0.0]])
    values = torch.tensor([[0.5, 0.4, 0.3], [0.2, 0.0, 0.0]])
    advantages, returns = token_advantages(rewards, values, mask, 1.0, 0.95)
    last = 1.0 - 0.3
    middle = 0.3 - 0.4 + 0.95 * last
    first = 0.1 + 0.4 - 0.5 + 0.95 * middle
    raw = torch.tensor([first, middle, last, 1.8])
    torch.testing.assert_close(returns[mask], raw + values[mask])
    torch.testing.assert_close(advantages[mask], (raw - raw.mean()) / raw.std())
    assert bool((advantages[~mask] == 0).all())
    assert bool((returns[~mask] == 0).all())


def test_ppo_puts_the_score_on_the_last_token_and_the_kl_on_every_one(tmp_path):
    _, _, _, batch = problem(tmp_path, loss="ppo", beta=0.3, gae_lambda=1.0)
    mask = batch.tokens.mask
    rewards = -0.3 * (batch.old - batch.reference)
    rewards[torch.arange(8), mask.sum(1) - 1] += batch.scores
    going = rewards.masked_fill(~mask, 0.0).flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(batch.returns[mask], going[mask])
