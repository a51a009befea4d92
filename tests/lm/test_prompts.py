"""From prompts to ids and back."""

import pytest
import torch

pytest.importorskip("transformers")

from rlopt.lm.prompts import Codec, PromptOrder, make_codec, repeated
from tests.lm.small_models import END, gpt2, tokenizer


def codec(**kwargs):
    return make_codec(tokenizer(), gpt2(end_id=None), True, kwargs)


def test_a_conversation_goes_through_the_chat_template():
    talk = [{"role": "user", "content": "say yes"}]
    assert codec().encode(talk) == codec().encode("<s> user say yes assistant")
    assert codec().decode([5, 1], talk) == [{"role": "assistant", "content": "yes"}]


def test_text_and_ids_are_prompts_too():
    assert codec().encode("say yes") == [4, 5]
    assert codec().encode([4, 5]) == [4, 5]
    assert codec().decode([5, 1], "say") == "yes"


def test_answers_of_the_data_end_with_the_end_token_once():
    assert codec().encode_answer("yes") == [5, 1]
    assert codec().encode_answer([5, 1]) == [5, 1]
    assert codec().encode_answer([{"role": "assistant", "content": "no"}]) == [6, 1]
    assert Codec(None, frozenset(), 0).encode_answer([5]) == [5]


def test_end_tokens_of_tokenizer_and_model_all_count():
    assert make_codec(tokenizer(), gpt2(end_id=END), True, {}).end_ids == {1, END}


def test_a_tokenizer_without_end_token_is_refused():
    without = tokenizer(eos_token=None, pad_token=None)
    with pytest.raises(ValueError, match=r"processing_class: expected a tokenizer .* end token"):
        make_codec(without, gpt2(end_id=None), True, {})
    assert make_codec(without, gpt2(end_id=None), False, {}).end_ids == set()


@pytest.mark.parametrize("prompt", ["", [], 3, {"a": 1}, [{"content": "x"}]])
def test_what_is_no_prompt_is_refused(prompt):
    with pytest.raises(ValueError, match="prompt: expected"):
        codec().encode(prompt)


def test_text_without_a_tokenizer_is_refused():
    with pytest.raises(ValueError, match="prompt: expected token ids where processing_class is None"):
        Codec(None, frozenset({1}), 1).encode("say")


def test_every_epoch_has_every_row_once_and_a_place_in_it_is_two_numbers():
    whole = PromptOrder(5, seed=3).take(15)
    assert [sorted(whole[i : i + 5]) for i in (0, 5, 10)] == [list(range(5))] * 3
    assert whole[:5] != whole[5:10]
    begun = PromptOrder(5, seed=3)
    begun.take(7)
    assert PromptOrder(5, 3, begun.epoch, begun.position).take(8) == whole[7:]


def test_groups_are_contiguous():
    assert repeated(["a", "b"], 3) == ["a"] * 3 + ["b"] * 3


def test_ids_may_be_a_tensor():
    assert codec().encode(torch.tensor([4, 5])) == [4, 5]
