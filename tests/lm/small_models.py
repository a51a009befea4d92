"""Models, a tokenizer and trainers that are made in milliseconds."""

import pytest
import torch

pytest.importorskip("transformers")

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rlopt.lm import REBELConfig, REBELTrainer
from rlopt.lm.examples.tiny import tiny_gpt2

VOCABULARY, END = 12, 11
WORDS = ["<pad>", "<end>", "user", "assistant", "say", "yes", "no", "maybe", "<s>"]


def gpt2(seed=0, end_id=END, dtype=torch.float32, **kwargs):
    """Sharper than at initialisation, so that what a test changes shows."""
    model = tiny_gpt2(VOCABULARY, seed, layers=1, width=16, end_id=end_id, **kwargs)
    if not kwargs.get("uniform"):
        model.lm_head.weight.data.mul_(20)
    return model.to(dtype)


def llama(seed=0):
    """Relative positions, tied embeddings, grouped attention."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCABULARY,
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                num_key_value_heads=1,
                max_position_embeddings=32,
                tie_word_embeddings=True,
                bos_token_id=None,
                eos_token_id=END,
                pad_token_id=None,
            )
        ).eval()


def tokenizer(**kwargs):
    """A word is a token; `<pad>` and the end are one token, and every text begins with none."""
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"eos_token": "<end>", "pad_token": "<end>"} | kwargs
    made = PreTrainedTokenizerFast(tokenizer_object=words, **special)
    made.chat_template = (
        "{% for m in messages %}<s> {{ m.role }} {{ m.content }} {% endfor %}{% if add_generation_prompt %}assistant{% endif %}"
    )
    return made


def lowest(completion_ids):
    """Higher for smaller tokens: a reward with spread."""
    return [-sum(ids) / (10 * len(ids)) for ids in completion_ids]


def settings(tmp_path, **kwargs):
    given = {
        "output_dir": str(tmp_path),
        "max_completion_length": 4,
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 8,
        "max_iterations": 4,
        "save_steps": None,
        "progress_bar": False,
        "device": "cpu",
    }
    return REBELConfig(**given | kwargs)


PROMPTS = [{"prompt": [1, 2]}, {"prompt": [3]}, {"prompt": [4, 5, 6]}, {"prompt": [7, 8]}]


def trainer(tmp_path, model=None, reward=lowest, dataset=None, **kwargs):
    own = {name: kwargs.pop(name) for name in ("sampler", "peft_config", "processing_class", "callbacks") if name in kwargs}
    return REBELTrainer(model or gpt2(), reward, settings(tmp_path, **kwargs), dataset or PROMPTS, **own)
