"""One path for every log-probability: what may not change it, and what has to."""

import pytest
import torch

pytest.importorskip("transformers")

from rlopt.lm import log_probs
from rlopt.lm.log_probs import Reader
from rlopt.lm.tokens import Tokens, completion_mask, pad_left, pad_right
from tests.lm.small_models import END, VOCABULARY, gpt2, llama

PROMPTS = [[1, 2, 3], [4], [5, 6], [7]]
COMPLETIONS = [[3, 4, END], [END], [2, 2, 9, 1], [8, END]]


def tokens(prompts=PROMPTS, completions=COMPLETIONS, pad=END):
    return Tokens(*pad_left(prompts, pad), *pad_right(completions, pad))


def one_by_one(model, temperature=1.0):
    """Each completion alone, without any padding."""
    sums = []
    for prompt, completion in zip(PROMPTS, COMPLETIONS):
        logits = model(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1].double()
        table = (logits / temperature).log_softmax(-1)
        sums.append(sum(table[i, token] for i, token in enumerate(completion)))
    return torch.stack(sums).float()


@pytest.mark.parametrize("make", [gpt2, llama])
@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
def test_log_probabilities_are_sums_over_each_completion_alone(make, temperature):
    model = make()
    read = Reader(temperature).read(model, tokens())
    torch.testing.assert_close(read.sequences, one_by_one(model, temperature), atol=1e-5, rtol=0)


def test_temperature_changes_them():
    model = gpt2()
    assert not torch.allclose(
        Reader(1.0).read(model, tokens()).sequences, Reader(0.9).read(model, tokens()).sequences, atol=0.01
    )


@pytest.mark.parametrize("make", [gpt2, llama])
def test_tokens_after_the_end_and_padding_change_nothing(make):
    model = make()
    plain = Reader().read(model, tokens()).sequences
    noise = torch.Generator().manual_seed(0)
    whole = tokens()
    for _ in range(3):
        ids = torch.randint(VOCABULARY, whole.completion_ids.shape, generator=noise)
        prompt = torch.randint(VOCABULARY, whole.prompt_ids.shape, generator=noise)
        other = Tokens(
            torch.where(whole.prompt_mask, whole.prompt_ids, prompt),
            whole.prompt_mask,
            torch.where(whole.mask, whole.completion_ids, ids),
            whole.mask,
        )
        torch.testing.assert_close(Reader().read(model, other).sequences, plain, atol=1e-6, rtol=0)


@pytest.mark.parametrize("make", [gpt2, llama])
def test_the_amount_of_prompt_padding_changes_nothing(make):
    model, whole = make(), tokens()
    ids, mask = pad_left([*PROMPTS, [0] * 6], END)
    padded = Tokens(ids[:-1], mask[:-1], whole.completion_ids, whole.mask)
    expected = Reader().read(model, whole).sequences
    torch.testing.assert_close(Reader().read(model, padded).sequences, expected, atol=1e-6, rtol=0)


def test_prompts_padded_on_the_right_are_refused():
    with pytest.raises(ValueError, match="prompt_mask: expected prompts padded on the left"):
        Tokens(*pad_right(PROMPTS, END), *pad_right(COMPLETIONS, END))


@torch.no_grad()
def test_without_position_ids_padding_would_count():
    """The negative control of the test above, by hand: absolute positions and left padding."""
    model, whole = gpt2(), tokens()
    attention = torch.cat([whole.prompt_mask, whole.mask], 1).long()
    ids = torch.cat([whole.prompt_ids, whole.completion_ids], 1)
    naive = model(input_ids=ids, attention_mask=attention, position_ids=torch.arange(ids.shape[1])[None].expand_as(ids)).logits
    length = whole.completion_ids.shape[1]
    table = naive[:, -length - 1 : -1].log_softmax(-1).gather(-1, whole.completion_ids[..., None])[..., 0]
    wrong = table.masked_fill(~whole.mask, 0.0).sum(1)
    right = Reader().read(model, whole).sequences
    assert abs(float(wrong[0] - right[0])) < 1e-5  # the longest prompt has no padding
    assert bool((wrong[1:] - right[1:]).abs().max() > 1e-3)


def test_masks_are_from_the_first_end_token_also_where_it_pads():
    ids = torch.tensor([[3, END, END, END], [END, 4, END, 5], [1, 2, 3, 4]])
    assert completion_mask(ids, {END}).tolist() == [[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]]
    assert completion_mask(ids, set()).all()
    assert completion_mask(ids, {4, END}).tolist()[2] == [1, 1, 1, 1]


def test_pieces_and_chunks_change_neither_numbers_nor_gradients(monkeypatch):
    results = []
    for chunk, rows in ((log_probs.CHUNK, 64), (2 * 4 * VOCABULARY, 3)):
        monkeypatch.setattr(log_probs, "CHUNK", chunk)
        model = gpt2(dtype=torch.float64)
        read = Reader(0.8, rows=rows).read(model, tokens())
        (read.sequences * torch.arange(1.0, 5.0, dtype=torch.float64)).sum().backward()
        pieces = Reader(0.8, rows=rows).evaluate(model, tokens(), entropy=True)
        results.append((read.sequences, pieces.sequences, pieces.entropy, *(p.grad for p in model.parameters())))
    for first, second in zip(*results):
        torch.testing.assert_close(first, second, atol=1e-12, rtol=0)


def test_entropy_is_of_the_tempered_distribution():
    model = gpt2(uniform=True)
    read = Reader(0.5).evaluate(model, tokens(), entropy=True)
    expected = torch.tensor(float(VOCABULARY)).log() * tokens().mask
    torch.testing.assert_close(read.entropy, expected, atol=1e-5, rtol=0)


def test_log_probabilities_are_float32_with_a_bfloat16_model():
    read = Reader(bf16=True).read(gpt2(), tokens())
    assert read.log_probs.dtype == torch.float32
    torch.testing.assert_close(read.sequences, Reader().read(gpt2(), tokens()).sequences, atol=0.3, rtol=0)


def test_an_impossible_token_after_the_end_gives_no_nan():
    model = gpt2()
    whole = tokens()
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(VOCABULARY))
    model.lm_head.bias.data[10] = -torch.inf
    ids = torch.where(whole.mask, whole.completion_ids, torch.tensor(10))
    read = Reader().read(model, Tokens(whole.prompt_ids, whole.prompt_mask, ids, whole.mask))
    read.sequences.sum().backward()
    assert read.sequences.isfinite().all()
    assert model.lm_head.weight.grad.isfinite().all()
