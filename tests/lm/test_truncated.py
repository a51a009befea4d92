"""Completions that were cut off, left out of the regression."""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("transformers")

from rlopt.lm.losses import policy_loss, weight_of
from rlopt.lm.pairing import chosen_rows, counted_groups
from rlopt.lm.regression import accumulate_gradient, optimiser_batches
from tests.lm.small_models import END, PROMPTS, gpt2, trainer
from tests.lm.test_lm_losses import ETA, gradient, problem

COUNTED = torch.tensor([True, True, False, True, False, False, True, True])


def test_what_remains_alone_of_its_group_goes_too():
    assert counted_groups(COUNTED, 2).tolist() == [True, True, False, False, False, False, True, True]
    assert counted_groups(COUNTED, 4).tolist() == [True, True, False, True, False, False, True, True]
    assert not counted_groups(torch.tensor([True, False, False, False]), 4).any()


@pytest.mark.parametrize("pairing", ["all", "best_worst", "random"])
def test_pairs_are_of_what_counts(pairing):
    rewards = torch.tensor([0.0, 1.0, 9.0, -1.0, -9.0, 9.0, 2.0, 3.0])
    noise, ids = torch.Generator().manual_seed(0), [[i] for i in range(8)]
    expected = {"all": [0, 1, 3, 6, 7], "best_worst": [1, 3, 7, 6]}
    for _ in range(20):
        rows = chosen_rows(pairing, rewards, ids, COUNTED, 4, noise).tolist()
        if pairing == "random":
            assert set(rows) <= {0, 1, 3, 6, 7}
            assert [row // 4 for row in rows] == [0, 0, 1, 1]
        else:
            assert rows == expected[pairing]
    nothing = chosen_rows(pairing, rewards, ids, torch.zeros(8, dtype=torch.bool), 4, noise)
    assert nothing.shape == (0,)
    assert nothing.dtype == torch.long


@pytest.mark.parametrize("loss", ["rebel", "rloo", "grpo", "ppo", "ipo"])
def test_micro_batches_of_unequal_groups_give_the_gradient_of_the_batch(tmp_path, loss):
    args, model, reader, batch = problem(tmp_path, loss=loss)
    part = batch.rows(COUNTED.nonzero()[:, 0])  # three of the first group, two of the second
    whole = gradient(model, policy_loss(args, ETA, part, reader.read(model, part.tokens)))
    model.zero_grad()
    small = replace(args, per_device_train_batch_size=4, gradient_accumulation_steps=2)
    accumulate_gradient(small, ETA, model, reader, part)
    torch.testing.assert_close(gradient(model), whole, rtol=1e-10, atol=1e-12)
    weights = [int(weight_of(args, part.rows(rows))) for rows in (torch.arange(3), torch.arange(3, 5))]
    assert weights == {"rebel": [1, 1], "ipo": [6, 2]}.get(loss, [3, 2])
    sizes = [len(piece) for piece in optimiser_batches(replace(small, gradient_accumulation_steps=1), part, torch.Generator())]
    assert sorted(sizes) == [2, 3]


def run(tmp_path, masked, ends, **more):
    """An iteration of one prompt, whose completions end where `ends` says so; what it learned, and its reward."""

    def sampler(model, prompt_ids, prompt_mask, args, codec, generator):
        bodies = torch.arange(len(prompt_ids))[:, None] % 10
        last = torch.where(torch.tensor(ends), torch.tensor(END), torch.tensor(5))[:, None]
        return torch.cat([bodies, last], 1)

    model = gpt2()
    made = trainer(
        tmp_path, model, lambda completion_ids: [float(ids[0]) for ids in completion_ids], PROMPTS[:1], sampler=sampler,
        num_generations=len(ends), per_device_train_batch_size=len(ends), beta=0.0, mask_truncated_completions=masked,
        **more,
    )  # fmt: skip
    metrics = made.iterate()
    return torch.cat([p.detach().flatten() for p in model.parameters()]), metrics


def test_a_masked_completion_changes_nothing_but_the_log(tmp_path):
    whole, _ = run(tmp_path, True, [True, True, True])
    masked, metrics = run(tmp_path, True, [True, True, True, False])
    unmasked, _ = run(tmp_path, False, [True, True, True, False])
    torch.testing.assert_close(masked, whole, atol=1e-6, rtol=0)
    assert float((unmasked - whole).abs().max()) > 1e-3  # the negative control
    assert metrics["completions/clipped_ratio"] == 0.25
    assert metrics["reward"] == pytest.approx(1.5)


def test_eta_is_of_what_counts(tmp_path):
    _, metrics = run(tmp_path, True, [True, True, False, False], eta_mode="std")
    assert metrics["eta"] == pytest.approx(1 / 0.5**0.5, rel=1e-5)


@pytest.mark.parametrize("loss", ["rebel", "rloo", "grpo", "ppo"])
def test_an_iteration_in_which_nothing_counts_learns_nothing(tmp_path, loss):
    before = torch.cat([p.flatten() for p in gpt2().parameters()])
    after, metrics = run(tmp_path, True, [True, False, False, False], loss=loss)
    assert torch.equal(before, after)
    assert "loss/first" not in metrics
