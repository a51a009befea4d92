"""The trainer: steps known in advance, resumption to the bit, data of every kind, errors."""

import csv
import json
import math
import warnings

import pytest
import torch

pytest.importorskip("transformers")

from rlopt import archive
from rlopt.lm import REBELTrainer
from rlopt.lm.log_probs import Reader
from rlopt.lm.tokens import Tokens, pad_left
from tests.lm.small_models import END, PROMPTS, gpt2, llama, lowest, settings, tokenizer, trainer

LOSSES = ["rebel", "rloo", "grpo", "ppo", "ipo"]


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize(("epsilon", "tolerance"), [(1e-8, 1e-2), (1e-12, 1e-6)])
def test_the_first_adam_step_is_rloos(tmp_path, epsilon, tolerance):
    """Identity I2: −4η times the gradient, of which Adam keeps nothing."""
    common = {"beta": 0.0, "num_iterations": 1, "max_grad_norm": None, "adam_epsilon": epsilon, "num_generations": 4}
    steps = {}
    for loss in ("rebel", "rloo", "grpo"):
        model = gpt2(dtype=torch.float64)
        before = weights(model)
        trainer(tmp_path, model, loss=loss, eta=3.0, **common).iterate()
        steps[loss] = weights(model) - before
    size = steps["rloo"].norm()
    assert float((steps["rebel"] - steps["rloo"]).norm() / size) < tolerance
    assert float((steps["grpo"] - steps["rloo"]).norm() / size) > 0.01  # the negative control


def test_exact_regressions_tilt_each_prompts_policy(tmp_path):
    """T2: π_t ∝ e^{ηtr} per prompt, from all pairs of one-token answers."""
    answers, prompts, eta = 8, 12, 1.5
    rewards = torch.rand(prompts, answers, generator=torch.Generator().manual_seed(0))
    model = gpt2(end_id=None, uniform=True)

    def every_answer(model, prompt_ids, prompt_mask, args, codec, generator):
        return torch.arange(answers).repeat(len(prompt_ids) // answers)[:, None]

    def reward(prompts, completion_ids):
        return [float(rewards[p[0], ids[0]]) for p, ids in zip(prompts, completion_ids)]

    made = trainer(
        tmp_path,
        model,
        reward,
        [{"prompt": [p]} for p in range(prompts)],
        sampler=every_answer,
        num_generations=answers,
        per_device_train_batch_size=prompts * answers,
        beta=0.0,
        eta=eta,
        max_completion_length=1,
        stop_at_end_token=False,
        num_iterations=200,
        explained_stop=0.999,
        lr_scheduler="constant",
        max_grad_norm=None,
    )
    for iteration in (1, 2, 3):
        assert made.iterate()["explained"] > 0.99
        ids, mask = pad_left([[p] for p in range(prompts) for _ in range(answers)], 0)
        each = torch.arange(answers).repeat(prompts)[:, None]
        probabilities = Reader().evaluate(model, Tokens(ids, mask, each, torch.ones_like(each, dtype=torch.bool)))
        measured = probabilities.sequences.view(prompts, answers).softmax(1)  # of these eight answers among themselves
        exact = (eta * iteration * rewards).softmax(1)
        difference = ((measured - exact) * rewards).sum(1)
        assert float(difference.abs().max()) < 0.02
        assert float((((eta * (iteration - 1) * rewards).softmax(1) - exact) * rewards).sum(1).abs().max()) > 0.03


@pytest.mark.parametrize("loss", LOSSES)
def test_resuming_goes_on_to_the_bit(tmp_path, loss):
    common = {"loss": loss, "num_generations": 4, "pairing": "random" if loss == "rebel" else "all", "steps_per_generation": 2}
    whole = trainer(tmp_path / "a", **common)
    whole.train()
    first = trainer(tmp_path / "b", save_steps=2, callbacks=[lambda t, m: t.state.iteration < 2], **common)
    first.train()
    assert first.state.iteration == 2
    assert not torch.equal(weights(first.model), weights(whole.model))
    second = trainer(tmp_path / "b", save_steps=2, **common)
    second.train(resume_from_checkpoint=True)
    assert second.state == whole.state
    assert torch.equal(weights(second.model), weights(whole.model))


def test_a_checkpoint_of_another_model_or_data_set_is_refused_and_changes_nothing(tmp_path):
    made = trainer(tmp_path)
    made.iterate()
    path = made.save_checkpoint()
    other = trainer(tmp_path, llama())
    before = weights(other.model)
    with pytest.raises(ValueError, match="is of another model"):
        other.train(resume_from_checkpoint=path)
    assert torch.equal(weights(other.model), before)
    with pytest.raises(ValueError, match="train_dataset: expected the 4 rows"):
        trainer(tmp_path, dataset=PROMPTS[:2]).train(resume_from_checkpoint=path)
    with pytest.raises(ValueError, match=r"there is no checkpoint-\*.zip"):
        trainer(tmp_path / "empty").train(resume_from_checkpoint=True)
    with pytest.raises(FileNotFoundError):
        made.train(resume_from_checkpoint=tmp_path / "nowhere.zip")


def test_a_checkpoint_is_data(tmp_path):
    made = trainer(tmp_path)
    made.iterate()
    content = archive.read(made.save_checkpoint(), {})
    assert json.dumps(content.data["settings"])
    assert {name.split("/")[0] for name in content.tensors} == {"parameters", "optimizer", "generators", "run"}


def test_a_frozen_reference_stays_and_its_kl_is_logged(tmp_path):
    made = trainer(tmp_path, beta=0.1, learning_rate=0.05)
    assert made.iterate()["kl_ref"] == pytest.approx(0.0, abs=1e-6)
    assert abs(made.iterate()["kl_ref"]) > 1e-3
    with made.reference() as reference:
        assert torch.equal(weights(reference), weights(gpt2()))


def test_without_beta_there_is_no_second_model(tmp_path):
    assert trainer(tmp_path, beta=0.0).reference is None
    assert trainer(tmp_path, loss="ipo").reference is not None


def test_an_adapter_is_trained_and_the_model_without_it_is_the_reference(tmp_path):
    peft = pytest.importorskip("peft")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's own, of transformers' next version
        config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], lora_dropout=0.5, task_type="CAUSAL_LM")
        made = trainer(tmp_path, llama(), peft_config=config, beta=0.1, learning_rate=0.05)
    base = {name: p.detach().clone() for name, p in made.model.named_parameters() if not p.requires_grad}
    first, second = made.iterate(), made.iterate()
    assert first["kl_ref"] == pytest.approx(0.0, abs=1e-6)
    assert abs(second["kl_ref"]) > 1e-4
    assert all(torch.equal(p, base[name]) for name, p in made.model.named_parameters() if name in base)
    tokens = made.sample(PROMPTS, made.generators["sampling"]).tokens
    with made.reference() as reference:
        without = Reader().evaluate(reference, tokens).sequences
    torch.testing.assert_close(without, Reader().evaluate(llama(), tokens).sequences, atol=1e-5, rtol=0)
    path = made.save_checkpoint()
    assert all("lora" in name for name in archive.read(path, {}).group("parameters"))
    assert (made.save_model(tmp_path / "adapter") / "adapter_model.safetensors").is_file()


def test_gradient_checkpointing_and_dropout_change_no_number(tmp_path):
    results = []
    for checkpointed in (False, True):
        model = llama()
        model.config.attention_dropout = 0.5
        for layer in model.model.layers:
            layer.self_attn.attention_dropout = 0.5
        metrics = trainer(tmp_path, model, gradient_checkpointing=checkpointed, num_iterations=2).iterate()
        results.append((weights(model), metrics["loss/last"]))
    torch.testing.assert_close(results[0][0], results[1][0], atol=1e-6, rtol=0)
    assert results[0][1] == pytest.approx(results[1][1], abs=1e-6)


def test_the_first_loss_is_the_mean_of_squared_scaled_differences(tmp_path):
    """explained = 1 − L / L(θ_t), with L(θ_t) = mean (η Δr)² over pairs."""
    seen = []

    def remembered(completion_ids):
        seen.append(torch.tensor(lowest(completion_ids)))
        return lowest(completion_ids)

    metrics = trainer(tmp_path, reward=remembered, beta=0.0, eta=2.0).iterate()
    pairs = seen[0].view(-1, 2)
    assert metrics["loss/first"] == pytest.approx(float((4 * (pairs[:, 0] - pairs[:, 1]).square()).mean()), rel=1e-5)
    assert metrics["explained"] == pytest.approx(1 - metrics["loss/last"] / metrics["loss/first"])
    assert metrics["reward"] == pytest.approx(float(seen[0].mean()), rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_raises_the_reward(tmp_path, loss):
    settings = {"num_generations": 4, "per_device_train_batch_size": 64, "beta": 0.02, "max_iterations": 12}
    beta = {"beta": 0.1} if loss == "ipo" else {}
    made = trainer(tmp_path, loss=loss, eta=4.0, lr_scheduler="constant", **settings | beta)
    rewards = [made.iterate()["reward"] for _ in range(12)]
    assert sum(rewards[-3:]) / 3 > rewards[0] + 0.1


def test_answers_of_the_data_take_their_old_log_probabilities_from_the_policy(tmp_path):
    """Hybrid: one completion of each group is the answer, scored by the same reward."""
    asked = []

    def reward(completion_ids, answer):
        asked.extend(zip(completion_ids, answer))
        return lowest(completion_ids)

    rows = [{"prompt": [p], "answer": [3, p]} for p in range(1, 5)]
    made = trainer(tmp_path, reward=reward, dataset=rows, offline_column="answer")
    sampled = made.sample(rows, made.generators["sampling"])
    assert [sampled.asked.completion_ids[i] for i in (0, 2, 4, 6)] == [[3, p, END] for p in range(1, 5)]
    made.iterate()
    assert len(asked) == 8
    assert made.state.num_tokens > 0


def test_samples_stand_beside_their_own_prompts_and_answers(tmp_path):
    def echo(model, prompt_ids, prompt_mask, args, codec, generator):
        return torch.stack([prompt_ids[:, -1], torch.full((len(prompt_ids),), END)], 1)

    rows = [{"prompt": [9, p], "answer": [[7]] * (p % 3)} for p in range(1, 5)]
    made = trainer(
        tmp_path, dataset=rows, sampler=echo, num_generations=4, per_device_train_batch_size=16, offline_column="answer"
    )
    completions = made.sample(rows, made.generators["sampling"]).asked.completion_ids
    assert completions == [[token, END] for p in range(1, 5) for token in [7] * (p % 3) + [p] * (4 - p % 3)]


def test_offline_data_with_scores_need_neither_sampler_nor_reward(tmp_path):
    def never(*arguments):
        raise AssertionError("sampled")

    rows = [{"prompt": [p], "answers": [[3, 4], [5]], "scores": [1.0, 0.0]} for p in range(1, 5)]
    made = trainer(
        tmp_path, reward=None, dataset=rows, sampler=never, offline_column="answers", offline_score_column="scores", eta=2.0,
        beta=0.0, num_iterations=100, explained_stop=0.99, max_grad_norm=None,
    )  # fmt: skip
    before = Reader().evaluate(made.model, made.sample(rows, made.generators["sampling"]).tokens).sequences
    assert made.iterate()["explained"] > 0.99
    after = Reader().evaluate(made.model, made.sample(rows, made.generators["sampling"]).tokens).sequences
    change = (after - before).view(-1, 2)
    torch.testing.assert_close(change[:, 0] - change[:, 1], torch.full((4,), 2.0), atol=0.3, rtol=0)
    rows[0]["scores"] = [1.0]
    with pytest.raises(ValueError, match="offline_score_column: expected 2 finite numbers"):
        made.sample(rows, made.generators["sampling"])


def test_preferences_alone_train(tmp_path):
    def shorter(prompts, completions, others):
        return [float((len(b) > len(a)) - (len(b) < len(a))) for a, b in zip(completions, others)]

    made = trainer(
        tmp_path, reward=None, preference_fn=shorter, num_generations=4, per_device_train_batch_size=64, beta=0.0, eta=4.0,
        lr_scheduler="constant",
    )  # fmt: skip
    lengths = [made.iterate()["completions/mean_length"] for _ in range(8)]
    assert lengths[-1] < lengths[0] - 1
    with pytest.raises(ValueError, match="preference_fn: expected no reward_funcs"):
        trainer(tmp_path, preference_fn=shorter)


def test_completions_that_were_cut_off_are_scored_by_the_rule(tmp_path):
    made = trainer(tmp_path, missing_eos_score=-9.0)
    sampled = made.sample(PROMPTS * 4, made.generators["sampling"])
    assert 0 < int(sampled.ended.sum()) < len(sampled.ended)
    plain = torch.tensor(lowest(sampled.asked.completion_ids))
    torch.testing.assert_close(made.score(sampled).total, torch.where(sampled.ended, plain, torch.tensor(-9.0)))
    penalised = trainer(tmp_path, missing_eos_penalty=2.0).score(sampled).total
    torch.testing.assert_close(penalised, torch.where(sampled.ended, plain, plain - 2.0))


@pytest.mark.parametrize("pairing", ["best_worst", "random"])
def test_pairs_of_larger_groups(tmp_path, pairing):
    made = trainer(tmp_path, pairing=pairing, num_generations=4, per_device_train_batch_size=16)
    assert math.isfinite(made.iterate()["loss/last"])


def test_text_and_conversations_reach_the_rewards_with_their_columns(tmp_path):
    seen = {}

    def reward(prompts, completions, completion_ids, level, trainer_state):
        seen.update(prompts=prompts, completions=completions, level=level, iteration=trainer_state.iteration)
        return [float(len(ids)) for ids in completion_ids]

    talk = [{"role": "user", "content": "say yes"}]
    model = gpt2(end_id=None)
    trainer(
        tmp_path, model, reward, [{"prompt": talk, "level": 7}], processing_class=tokenizer(), per_device_train_batch_size=2
    ).iterate()
    assert seen["prompts"] == [talk, talk]
    assert seen["completions"][0][0]["role"] == "assistant"
    assert seen["level"] == [7, 7]
    trainer(
        tmp_path,
        model,
        reward,
        [{"prompt": "say yes", "level": 7}],
        processing_class=tokenizer(),
        per_device_train_batch_size=2,
    ).iterate()
    assert isinstance(seen["completions"][0], str)


def test_the_tokenizers_padding_side_changes_nothing(tmp_path):
    results = []
    for side in ("left", "right"):
        words = tokenizer(padding_side=side)
        rows = [{"prompt": "say"}, {"prompt": "user say yes"}]
        made = trainer(tmp_path, gpt2(end_id=None), dataset=rows, processing_class=words)
        made.iterate()
        results.append(weights(made.model))
    assert torch.equal(*results)


def test_a_data_set_of_the_datasets_library_trains_the_same(tmp_path):
    datasets = pytest.importorskip("datasets")
    results = []
    for rows in (PROMPTS, datasets.Dataset.from_list(PROMPTS)):
        made = trainer(tmp_path, dataset=rows)
        made.iterate()
        results.append(weights(made.model))
    assert torch.equal(*results)


def test_evaluation_changes_nothing(tmp_path):
    results = []
    for evaluated in (False, True):
        made = REBELTrainer(gpt2(), lowest, settings(tmp_path), PROMPTS, PROMPTS[:3])
        if evaluated:
            assert made.evaluate() == made.evaluate()
            assert -1 < made.evaluate()["eval/reward"] < 0
        made.iterate()
        results.append(weights(made.model))
    assert torch.equal(*results)
    with pytest.raises(ValueError, match="eval_dataset: expected"):
        trainer(tmp_path).evaluate()


def test_the_log_has_every_diagnostic_and_some_completions(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    made = trainer(tmp_path, log_completions=True, max_iterations=2, bf16=False)
    made.train()
    events = EventAccumulator(str(tmp_path / "logs"))
    events.Reload()
    keys = set(events.Tags()["scalars"])
    assert keys >= {
        *("loss/first", "loss/last", "loss/delta", "explained", "sign_align", "approx_kl", "ratio/mean", "ratio/var"),
        *("entropy", "kl_ref", "reward", "reward_std", "frac_reward_zero_std", "reward/lowest", "eta", "eta*beta"),
        *("completions/mean_length", "completions/min_length", "completions/max_length", "completions/clipped_ratio"),
        *("grad_norm", "lr", "num_tokens", "time/sampling", "time/scoring", "time/regressing"),
    }
    assert "completions/text_summary" in events.Tags()["tensors"]
    rows = (tmp_path / "logs" / "progress.csv").read_text().splitlines()
    assert len(rows) == 3


def test_the_learning_rate_falls_to_zero_by_iteration(tmp_path):
    made = trainer(tmp_path, learning_rate=1e-3, warmup_ratio=0.5)
    assert [made.iterate()["lr"] for _ in range(4)] == pytest.approx([5e-4, 7.5e-4, 5e-4, 2.5e-4])


@pytest.mark.parametrize(("mode", "expected"), [("std", "kappa"), ("kl_target", "kl")])
def test_eta_follows_the_spread_of_rewards(tmp_path, mode, expected):
    made = trainer(tmp_path, eta_mode=mode, eta=0.5, kl_target=0.02, beta=0.0)
    sampled = made.sample(PROMPTS, torch.Generator().manual_seed(made.args.seed))
    variance = torch.tensor(lowest(sampled.asked.completion_ids)).view(-1, 2).var(1).mean()
    eta = {"kappa": 0.5 / variance.sqrt(), "kl": (0.04 / variance).sqrt()}[expected]
    made.state.position = 0
    every = torch.ones(8, dtype=torch.bool)
    assert float(made._eta(made.score(sampled).total, every)) == pytest.approx(float(eta), rel=1e-5)
    capped = trainer(tmp_path, eta_mode=mode, eta=1e3, kl_target=1e6, beta=0.5, max_grad_norm=None)
    assert float(capped._eta(capped.score(sampled).total, every)) == pytest.approx(2.0)


def test_a_regression_that_is_never_solved_is_warned_of(tmp_path):
    made = trainer(tmp_path, learning_rate=1e-9, max_iterations=12)
    with pytest.warns(UserWarning, match="explained: below 0.05 for 10 iterations"):
        made.train()


def test_what_cannot_be_trained_is_refused(tmp_path):
    with pytest.raises(ValueError, match="reward_funcs: expected a reward function"):
        trainer(tmp_path, reward=None)
    with pytest.raises(ValueError, match="train_dataset: expected a column 'prompt', got text"):
        trainer(tmp_path, dataset=[{"text": "a"}])
    with pytest.raises(ValueError, match="train_dataset: expected a data set to train on"):
        REBELTrainer(gpt2(), lowest, settings(tmp_path)).train()
    with pytest.raises(ValueError, match="max_completion_length: expected prompt and completion within the model's 32"):
        trainer(tmp_path, max_completion_length=31).iterate()
    with pytest.raises(ValueError, match="end token"):
        trainer(tmp_path, gpt2(end_id=None))


def test_what_is_wrong_with_data_is_said_before_anything_is_trained(tmp_path):
    with pytest.raises(ValueError, match="eval_steps: expected None without a data set to evaluate with, got 2"):
        trainer(tmp_path, eval_steps=2)
    with pytest.raises(ValueError, match="train_dataset: a column 'completions' would hide"):
        trainer(tmp_path, dataset=[{"prompt": [1], "completions": "x"}])
    with pytest.raises(ValueError, match="train_dataset: expected rows, got the splits train, test; pass one of them"):
        trainer(tmp_path, dataset={"train": PROMPTS, "test": PROMPTS})
    with pytest.raises(ValueError, match=r"train_dataset: expected a sequence of rows .* got generator"):
        trainer(tmp_path, dataset=(row for row in PROMPTS))
    long = trainer(tmp_path, dataset=[{"prompt": [1], "answer": [2] * 40}], offline_column="answer")
    with pytest.raises(ValueError, match="offline_column: expected prompt and completion within the model's 32 positions"):
        long.iterate()


def test_columns_that_some_rows_lack_are_none(tmp_path):
    seen = []

    def reward(completions, hint):
        seen.extend(hint)
        return [0.0, 1.0] * (len(completions) // 2)

    trainer(tmp_path, reward=reward, dataset=[{"prompt": [1]}, {"prompt": [2], "hint": "x"}]).iterate()
    assert set(seen) == {None, "x"}


def test_a_sampler_of_another_form_is_named(tmp_path):
    made = trainer(tmp_path, sampler=lambda model, ids, *rest: ids[:2])
    with pytest.raises(ValueError, match=r"sampler: expected completion ids \[8, L\], got shape \(2, "):
        made.iterate()


def test_a_gradient_that_is_not_finite_stops_the_training_and_keeps_the_model(tmp_path):
    made = trainer(tmp_path, num_iterations=1)
    made.model.transformer.ln_f.weight.register_hook(lambda gradient: gradient * torch.nan)
    before = weights(made.model)
    with pytest.raises(FloatingPointError, match="gradient's norm is nan; the parameters are those before the step"):
        made.train()
    assert torch.equal(weights(made.model), before)


def test_a_run_that_goes_on_keeps_the_lines_that_it_has_written(tmp_path):
    trainer(tmp_path, save_steps=2, callbacks=[lambda t, m: t.state.iteration < 2]).train()
    trainer(tmp_path).train(resume_from_checkpoint=True)
    rows = list(csv.DictReader((tmp_path / "logs" / "progress.csv").read_text().splitlines()))
    tokens = [float(row["num_tokens"]) for row in rows]
    assert len(rows) == 4
    assert tokens == sorted(set(tokens))


def test_an_evaluation_warns_of_nothing_again(tmp_path):
    with pytest.warns(UserWarning, match="above 1"):
        args = settings(tmp_path, eta=1.5, beta=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        REBELTrainer(gpt2(), lowest, args, PROMPTS, PROMPTS[:2]).evaluate()
