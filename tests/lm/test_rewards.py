"""Scores, and the errors that name the function."""

import asyncio

import pytest
import torch

pytest.importorskip("transformers")

from tokenizers.processors import TemplateProcessing
from transformers import GPT2Config, GPT2ForSequenceClassification

from rlopt.lm import RewardModel
from rlopt.lm.rewards import Asked, as_reward_functions, compare, score
from tests.lm.small_models import tokenizer

ASKED = Asked(["p", "p", "q", "q"], ["a", "bb", "ccc", "dddd"], [[1], [1, 2], [1], [1, 2]], {"bonus": [1.0, 2.0, 3.0, 4.0]})


def length(completions):
    return [float(len(text)) for text in completions]


def only_q(prompts, **columns):
    return [columns["bonus"][i] if prompt == "q" else None for i, prompt in enumerate(prompts)]


def test_weighted_sums_leave_out_what_does_not_apply():
    scores = score([length, only_q], [2.0, 10.0], ASKED)
    assert scores.total.tolist() == [2.0, 4.0, 36.0, 48.0]
    assert scores.parts["only_q"].isnan().tolist() == [True, True, False, False]


def test_async_functions_run_together():
    started = []

    async def first(completions):
        started.append("first")
        while len(started) < 2:  # would never end one after the other
            await asyncio.sleep(0.001)
        return [1.0] * len(completions)

    async def second(completions):
        started.append("second")
        return [0.5] * len(completions)

    assert score([first, length, second], None, ASKED).total.tolist() == [2.5, 3.5, 4.5, 5.5]

    async def inside_a_running_loop():
        return score([first], None, ASKED).total.tolist()

    assert asyncio.run(inside_a_running_loop()) == [1.0] * 4


def test_an_error_in_an_async_function_arrives():
    async def broken(completions):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        score([broken], None, ASKED)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([1.0], "expected 4 numbers from bad, one for each completion, got 1"),
        (1.0, "expected 4 numbers from bad"),
        (None, "expected 4 numbers from bad, got None"),
        ([1.0, float("nan"), 1.0, 1.0], "expected finite numbers or None from bad, got nan for completion 1"),
        ([1.0, 1.0, float("inf"), 1.0], "from bad, got inf for completion 2"),
        (["good"] * 4, "from bad, got 'good' for completion 0"),
        ([None, 1.0, 1.0, 1.0], "got None from all for completion 'a' of prompt 'p'"),
    ],
)
def test_what_a_function_does_wrong_is_named(answer, message):
    def bad(completions):
        return answer

    with pytest.raises(ValueError, match=message):
        score([bad], None, ASKED)


def test_a_function_that_asks_for_what_is_not_there_is_named():
    def picky(completions, bonsu, scale=1.0):
        return []

    with pytest.raises(ValueError, match=r"picky asks for 'bonsu', expected one of prompts, .*; did you mean 'bonus'"):
        score([picky], None, ASKED)

    def compared(prompts, completions, others, bonsu):
        return []

    with pytest.raises(ValueError, match="compared asks for 'bonsu'"):
        compare(compared, ASKED, 2)


def test_functions_are_functions_and_weights_are_as_many():
    with pytest.raises(ValueError, match="reward_funcs: expected a function"):
        as_reward_functions([3])
    with pytest.raises(ValueError, match="reward_weights: expected 2"):
        score([length, only_q], [1.0], ASKED)


def test_two_functions_of_one_name_are_told_apart():
    assert list(score([length, length], None, ASKED).parts) == ["length_0", "length_1"]


def test_a_classifier_is_a_reward_function_and_padding_does_not_change_its_scores():
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = GPT2ForSequenceClassification(GPT2Config(vocab_size=12, n_embd=8, n_layer=1, n_head=1, num_labels=1))
    reward = RewardModel(model, tokenizer(), batch_size=2)
    prompts, completions = ["say ", "say ", "say no "], ["yes", "yes no maybe", "no"]
    together = reward(prompts, completions)
    alone = [reward([prompt], [completion])[0] for prompt, completion in zip(prompts, completions)]
    assert together == pytest.approx(alone, abs=1e-5)
    assert len(set(together)) == 3
    with pytest.raises(ValueError, match="got no tokenizer"):
        RewardModel(model)


def test_a_classifier_reads_texts_and_conversations_alone():
    class Echo(torch.nn.Module):
        """Its score is the number of tokens, first ones of a sequence among them."""

        config = GPT2Config(num_labels=1)
        device = torch.device("cpu")

        def forward(self, input_ids, attention_mask, **kwargs):
            return type("Output", (), {"logits": attention_mask.sum(1, keepdim=True).float()})

    words = tokenizer(bos_token="<s>")
    words._tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 8)])
    reward = RewardModel(Echo(), words)
    talk, answer = [{"role": "user", "content": "say yes"}], [{"role": "assistant", "content": "yes"}]
    assert reward(["say "], ["yes no"]) == [4.0]
    assert reward([talk], [answer]) == [7.0]  # "<s> user say yes", "<s> assistant yes": the template's, and no more
    with pytest.raises(ValueError, match=r"Echo expected texts or conversations, got the prompt \[1, 2\]"):
        reward([[1, 2]], [[3]])


def test_comparisons_ask_every_pair_of_a_group_once():
    asked = []

    def preference(prompts, completions, others, bonus):
        asked.extend(zip(completions, others, bonus))
        return [0.5 if len(a) < len(b) else -1.0 for a, b in zip(completions, others)]

    assert compare(preference, ASKED, 2).tolist() == [0.25, -0.25, 0.25, -0.25]
    assert asked == [("a", "bb", 1.0), ("ccc", "dddd", 3.0)]
    asked.clear()
    assert compare(preference, ASKED, 4).tolist() == pytest.approx([0.375, 0.125, -0.125, -0.375])
    assert len(asked) == 6


def test_comparisons_beyond_one_are_refused():
    def too_far(prompts, completions, others):
        return [2.0] * len(completions)

    with pytest.raises(ValueError, match=r"preference_fn: expected numbers in \[−1, 1\] from too_far, got 2"):
        compare(too_far, ASKED, 2)
