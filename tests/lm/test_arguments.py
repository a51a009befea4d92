"""What is refused, and what is warned of."""

import warnings

import pytest

pytest.importorskip("transformers")

from rlopt.lm import REBELConfig


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_generations": 1}, "num_generations: expected an integer of at least 2, got 1"),
        ({"eta": 0.0}, "eta: expected a positive number, got 0.0"),
        ({"eta": -1.0}, "eta: expected a positive number"),
        ({"temperature": 0.0}, "temperature: expected a positive number"),
        ({"num_generations": 3}, "per_device_train_batch_size: expected a multiple of num_generations=3, got 8"),
        ({"num_generations": 16, "per_device_train_batch_size": 8}, "needs two_pass=True"),
        (
            {"num_generations": 16, "per_device_train_batch_size": 8, "two_pass": True},
            "gradient_accumulation_steps: expected whole groups",
        ),
        ({"gradient_accumulation_steps": 2, "steps_per_generation": 3}, "steps_per_generation: expected a multiple"),
        ({"eta": 40.0, "max_grad_norm": None}, "eta: expected eta \\* beta below 2"),
        ({"loss": "rebell"}, "loss: expected one of .*; did you mean 'rebel'"),
        ({"eta_mode": "auto"}, "eta_mode: expected one of"),
        ({"loss": "ipo", "beta": 0.0}, "beta: expected a positive number with loss='ipo'"),
        ({"loss": "rloo", "two_pass": True}, "two_pass: expected loss='rebel'"),
        ({"loss": "ppo", "pairing": "random"}, "pairing: expected 'all' with loss='ppo'"),
        ({"explained_stop": 1.5}, "explained_stop: expected"),
        ({"reward_clip_range": (1.0, 1.0)}, "reward_clip_range: expected finite"),
        ({"missing_eos_score": float("nan")}, "missing_eos_score: expected a number"),
        ({"offline_score_column": "s"}, "offline_score_column: expected offline_column"),
        ({"anchor": "start"}, "anchor: expected one of"),
        ({"eta": float("inf")}, "eta: expected a positive number, got inf"),
        ({"eta": 2.0, "beta": 1.0}, "eta: expected eta \\* beta below 2 .* got 2; kl_mode='prox' has no such limit"),
        ({"top_p": 0.0}, "top_p: expected a positive number"),
        ({"generation_kwargs": {"temperature": 0.5}}, "generation_kwargs: expected it without 'temperature'"),
        ({"generation_kwargs": {"max_new_tokens": 5}}, "decided by max_completion_length"),
        ({"sync_ref_model": True, "beta": 0.0}, "sync_ref_model: expected beta > 0"),
        ({"sync_ref_model": True, "ref_model_mixup_alpha": 1.5}, "ref_model_mixup_alpha: expected"),
        ({"ref_model_sync_steps": 0}, "ref_model_sync_steps: expected a positive integer"),
    ],
)
def test_what_cannot_work_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        REBELConfig(**given)


def test_a_group_larger_than_a_micro_batch_is_accepted_with_two_passes():
    args = REBELConfig(num_generations=16, per_device_train_batch_size=4, gradient_accumulation_steps=8, two_pass=True)
    assert (args.groups_per_step, args.prompts_per_iteration) == (2, 2)


def test_an_oscillating_step_is_warned_of():
    with pytest.warns(UserWarning, match="eta \\* beta = 1.5 is above 1"):
        REBELConfig(eta=30.0)


def test_a_large_step_with_clipped_gradients_is_warned_of():
    with pytest.warns(UserWarning, match="clipping keeps the direction alone"):
        REBELConfig(eta=100.0, beta=0.0)


def test_neither_is_warned_of_where_it_does_not_apply():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        REBELConfig(eta=100.0, beta=0.0, max_grad_norm=None)
        REBELConfig(eta=40.0, kl_mode="prox")
        REBELConfig(eta=1e6, loss="rloo")


def test_the_defaults_are_the_specifications():
    args = REBELConfig()
    assert (args.eta, args.beta, args.num_generations, args.num_iterations, args.learning_rate) == (1.0, 0.05, 2, 4, 1e-6)
    assert (args.kl_mode, args.loss_form, args.pairing, args.max_grad_norm) == ("reward", "code", "all", 1.0)
    assert (args.resolved_anchor, REBELConfig(loss="ipo").resolved_anchor) == ("iteration", "reference")
