"""transformers' callbacks: told in order, obeyed, and told apart from functions."""

import csv

import pytest
import torch

pytest.importorskip("transformers")

from transformers import EarlyStoppingCallback, TrainerCallback, TrainerControl, TrainingArguments

from rlopt.lm import REBELTrainer
from tests.lm.small_models import PROMPTS, gpt2, lowest, settings, trainer


class Listener(TrainerCallback):
    def __init__(self):
        self.heard = []

    def on_train_begin(self, args, state, control, **kwargs):
        assert isinstance(args, TrainingArguments)
        self.heard.append(("train_begin", state.global_step, state.max_steps))

    def on_step_begin(self, args, state, control, **kwargs):
        self.heard.append(("step_begin", state.global_step))

    def on_step_end(self, args, state, control, model, **kwargs):
        assert isinstance(model, torch.nn.Module)
        self.heard.append(("step_end", state.global_step))

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        assert metrics["eval_reward"] == metrics["eval/reward"]
        self.heard.append(("evaluate", state.global_step))

    def on_log(self, args, state, control, logs, **kwargs):
        assert logs["reward"] == state.log_history[-1]["reward"]
        self.heard.append(("log", state.global_step))

    def on_save(self, args, state, control, **kwargs):
        self.heard.append(("save", state.global_step))

    def on_train_end(self, args, state, control, **kwargs):
        self.heard.append(("train_end", state.global_step))


def test_callbacks_hear_of_everything_in_order(tmp_path):
    listener = Listener()
    args = settings(tmp_path, max_iterations=2, eval_steps=2, save_steps=2)
    REBELTrainer(gpt2(), lowest, args, PROMPTS, PROMPTS[:2], callbacks=[listener]).train()
    assert listener.heard == [
        ("train_begin", 0, 2),
        ("step_begin", 0),
        ("step_end", 1),
        ("log", 1),
        ("step_begin", 1),
        ("step_end", 2),
        ("evaluate", 2),
        ("log", 2),
        ("save", 2),
        ("train_end", 2),
    ]


def test_what_a_callback_asks_for_is_done(tmp_path):
    class Asks(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            first, second = state.global_step == 1, state.global_step == 2
            return TrainerControl(should_log=first, should_save=first, should_evaluate=second, should_training_stop=second)

    args = settings(tmp_path, logging_steps=100)
    made = REBELTrainer(gpt2(), lowest, args, PROMPTS, PROMPTS[:2], callbacks=[Asks])
    assert "eval/reward" in made.train()
    assert made.state.iteration == 2
    assert [path.name for path in tmp_path.glob("*.zip")] == ["checkpoint-1.zip"]
    with (tmp_path / "logs" / "progress.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 1


@pytest.mark.filterwarnings("ignore:Using EarlyStoppingCallback")
def test_early_stopping_stops_what_does_not_improve(tmp_path):
    for rewards, expected in (([1, 3, 1, 2, 9, 9], 4), ([1, 3, 1, 4, 2, 3], 6), ([1, 2, 3, 4, 5, 6], 6)):
        args, left = settings(tmp_path, max_iterations=6, eval_steps=1), iter(rewards)
        made = REBELTrainer(gpt2(), lowest, args, PROMPTS, PROMPTS[:2], callbacks=[EarlyStoppingCallback(2)])
        made.evaluate = lambda left=left: {"eval/reward": float(next(left))}
        made.train()
        assert made.state.iteration == expected  # the second evaluation in a row that is no better than the best


def test_functions_and_callbacks_stand_side_by_side_and_change_nothing(tmp_path):
    seen, plain = [], trainer(tmp_path / "a", max_iterations=2)
    plain.train()
    made = trainer(tmp_path / "b", max_iterations=2, callbacks=[lambda t, m: seen.append(m["reward"]), Listener])
    made.train()
    assert len(seen) == 2
    assert all(torch.equal(a, b) for a, b in zip(plain.model.parameters(), made.model.parameters()))


@pytest.mark.parametrize("given", [[3], ["wandb"], [dict]])
def test_other_callbacks_are_refused(tmp_path, given):
    with pytest.raises(
        ValueError, match=r"callbacks: expected functions f\(trainer, metrics\), or transformers.TrainerCallback"
    ):
        trainer(tmp_path, callbacks=given)
