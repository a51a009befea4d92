"""What is drawn is what the log-probabilities are of."""

import pytest
import torch

pytest.importorskip("transformers")

from transformers import GenerationConfig

from rlopt.lm.log_probs import Reader
from rlopt.lm.prompts import Codec
from rlopt.lm.sampling import generate
from rlopt.lm.tokens import Tokens, completion_mask, pad_left
from tests.lm.small_models import END, VOCABULARY, gpt2, llama, settings

CODEC = Codec(None, frozenset({END}), END)


def drawn(model, prompts, tmp_path, seed=0, codec=CODEC, **kwargs):
    ids, mask = pad_left(prompts, codec.pad_id)
    return generate(model, ids, mask, settings(tmp_path, **kwargs), codec, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("make", [gpt2, llama])
def test_padding_does_not_change_greedy_completions(make, tmp_path):
    model, prompts = make(), [[1, 2, 3, 4, 5], [6], [7, 8]]
    together = drawn(model, prompts, tmp_path, generation_kwargs={"do_sample": False}).tolist()
    for prompt, completion in zip(prompts, together):
        alone = drawn(model, [prompt], tmp_path, generation_kwargs={"do_sample": False}).tolist()[0]
        assert completion[: len(alone)] == alone


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_frequencies_are_the_tempered_probabilities(temperature, tmp_path):
    model, count = gpt2(), 4000
    ids = drawn(model, [[1], [2, 3]] * count, tmp_path, max_completion_length=1, temperature=temperature)
    prompts = pad_left([[1], [2, 3]], END)
    for row in range(2):
        frequencies = torch.bincount(ids[row::2, 0], minlength=VOCABULARY) / count
        every = torch.arange(VOCABULARY)[:, None]
        tokens = Tokens(*(x[row].expand(VOCABULARY, -1) for x in prompts), every, torch.ones_like(every, dtype=torch.bool))
        probabilities = Reader(temperature).evaluate(model, tokens).sequences.exp()
        assert float(probabilities.max()) > 0.15  # not the uniform distribution, which any temperature leaves alone
        # four standard errors of each frequency
        assert bool(((frequencies - probabilities).abs() <= 4 * (probabilities / count).sqrt() + 1e-6).all())


def test_a_sample_is_a_function_of_the_generator_and_leaves_the_global_one_alone(tmp_path):
    before = torch.random.get_rng_state()
    first, again, other = (drawn(gpt2(), [[1]] * 20, tmp_path, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert first.shape != other.shape or not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_models_own_defaults_do_not_narrow_sampling(tmp_path):
    plain, narrowed = gpt2(), gpt2()
    narrowed.generation_config = GenerationConfig(top_k=1, eos_token_id=0, repetition_penalty=5.0, do_sample=True)
    assert torch.equal(drawn(plain, [[1]] * 50, tmp_path), drawn(narrowed, [[1]] * 50, tmp_path))
    assert narrowed.generation_config.top_k == 1


def test_completions_of_a_fixed_length_do_not_stop(tmp_path):
    model = gpt2(uniform=True)
    ids = drawn(model, [[1]] * 50, tmp_path, codec=Codec(None, frozenset(), 0), stop_at_end_token=False)
    assert ids.shape == (50, 4)
    assert bool((ids[:, :-1] == END).any())
    assert completion_mask(ids, set()).all()


def test_top_k_narrows_sampling(tmp_path):
    ids = drawn(gpt2(), [[1]] * 200, tmp_path, max_completion_length=1, top_k=2)
    assert len(ids.unique()) == 2
