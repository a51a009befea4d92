"""Models as the trainer takes them."""

import warnings

import pytest
import torch

pytest.importorskip("transformers")

from transformers import OPTConfig, OPTForCausalLM

from rlopt.lm import REBELTrainer
from tests.lm.small_models import END, PROMPTS, VOCABULARY, gpt2, llama, lowest, settings, tokenizer, trainer


def test_a_model_in_half_precision_is_loaded_in_float32(tmp_path):
    gpt2(end_id=1).to(torch.bfloat16).save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    made = REBELTrainer(str(tmp_path / "model"), lowest, settings(tmp_path), PROMPTS)
    assert {p.dtype for p in made.model.parameters()} == {torch.float32}
    assert made.processing_class.eos_token_id == 1
    half = settings(tmp_path, model_init_kwargs={"dtype": torch.bfloat16})
    with pytest.warns(UserWarning, match="trained parameters are in half precision"):
        REBELTrainer(str(tmp_path / "model"), lowest, half, PROMPTS)


def opt(dropout):
    """Drops by function, at rates that are numbers of its layers."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        config = OPTConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            ffn_dim=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=32,
            word_embed_proj_dim=16,
            dropout=dropout,
            layerdrop=dropout,
            bos_token_id=None,
            eos_token_id=END,
            pad_token_id=END,
        )
        return OPTForCausalLM(config).eval()


def test_no_kind_of_dropout_is_left_where_checkpointing_needs_training_mode(tmp_path):
    results = []
    for dropout in (0.0, 0.5):
        metrics = trainer(tmp_path, opt(dropout), gradient_checkpointing=True, num_iterations=2).iterate()
        results.append(metrics["loss/last"])
    assert results[0] == pytest.approx(results[1], abs=1e-7)


def test_a_model_with_a_device_map_stays_where_it_is(tmp_path, monkeypatch):
    model = gpt2()
    model.hf_device_map = {"": "cpu"}
    monkeypatch.setattr(model, "to", lambda *arguments: pytest.fail("moved"))
    assert trainer(tmp_path, model).device == torch.device("cpu")


def test_a_second_adapter_is_refused(tmp_path):
    peft = pytest.importorskip("peft")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's own, of transformers' next version
        config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
        with_one = peft.get_peft_model(llama(), config)
    with pytest.raises(ValueError, match="peft_config: expected None where model is a PeftModel"):
        trainer(tmp_path, with_one, peft_config=config)


def test_several_processes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="WORLD_SIZE: expected one process, got 2"):
        trainer(tmp_path)


def test_the_rates_of_a_given_optimiser_are_what_the_schedule_starts_from(tmp_path):
    model = gpt2()
    head, rest = [model.lm_head.weight], [p for p in model.parameters() if p is not model.lm_head.weight]
    optimizer = torch.optim.AdamW([{"params": head, "lr": 0.02}, {"params": rest, "lr": 0.001}])
    made = REBELTrainer(model, lowest, settings(tmp_path), PROMPTS, optimizer=optimizer)
    rates = []
    for _ in range(3):
        made.iterate()
        rates.append([group["lr"] for group in optimizer.param_groups])
    assert torch.allclose(torch.tensor(rates), torch.tensor([[0.02, 0.001]]) * torch.tensor([[1.0], [0.75], [0.5]]))
