"""The reference: frozen and told apart when a run goes on, or following."""

import warnings

import pytest
import torch

pytest.importorskip("transformers")

from rlopt import archive
from tests.lm.small_models import gpt2, llama, trainer

FOLLOWING = {"sync_ref_model": True, "ref_model_sync_steps": 2, "ref_model_mixup_alpha": 0.6, "beta": 0.2}


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def stopped(tmp_path, iteration, **kwargs):
    """A trainer that saved its place and stopped."""
    made = trainer(tmp_path, callbacks=[lambda t, m: t.state.iteration < iteration], **kwargs)
    made.train()
    made.save_checkpoint()
    return made


@pytest.mark.parametrize(
    "more", [{"beta": 0.3}, {"beta": 0.3, "kl_mode": "prox"}, FOLLOWING], ids=["frozen", "prox", "following"]
)
def test_a_run_with_a_reference_goes_on_to_the_bit(tmp_path, more):
    whole = trainer(tmp_path / "a", learning_rate=0.05, **more)
    whole.train()
    stopped(tmp_path / "b", 3, learning_rate=0.05, **more)
    other = trainer(tmp_path / "b", learning_rate=0.05, **more)
    other.train(resume_from_checkpoint=True)
    assert torch.equal(weights(other.model), weights(whole.model))
    assert torch.equal(weights(other.reference.model), weights(whole.reference.model))


def test_another_first_model_is_refused_and_nothing_changes(tmp_path):
    """Exact resume made from the trained model would be regularised towards that one, silently."""
    trained = stopped(tmp_path, 2).model
    made = trainer(tmp_path, trained)
    before = weights(made.model)
    with pytest.raises(ValueError, match="is of another first model"):
        made.train(resume_from_checkpoint=True)
    assert torch.equal(weights(made.model), before)
    # Without a reference the file has all that the run depends on.
    alone = stopped(tmp_path / "alone", 2, beta=0.0)
    other = trainer(tmp_path / "alone", gpt2(seed=5), beta=0.0, max_iterations=2)
    other.train(resume_from_checkpoint=True)
    assert torch.equal(weights(other.model), weights(alone.model))


def test_another_base_of_an_adapter_is_refused(tmp_path):
    peft = pytest.importorskip("peft")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's own, of transformers' next version
        config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        stopped(tmp_path, 1, model=llama(), peft_config=config, beta=0.0)
        other = trainer(tmp_path, llama(seed=1), peft_config=config, beta=0.0)
        with pytest.raises(ValueError, match="is of another first model"):
            other.train(resume_from_checkpoint=True)
        same = trainer(tmp_path, llama(), peft_config=config, beta=0.0)
        same.train(resume_from_checkpoint=True)
        assert same.state.iteration == 4
        with pytest.raises(ValueError, match="sync_ref_model: expected False with an adapter"):
            trainer(tmp_path, llama(), peft_config=config, **FOLLOWING)


def test_a_reference_follows_every_so_many_iterations(tmp_path):
    made = trainer(tmp_path, learning_rate=0.05, **FOLLOWING)
    first = weights(made.model)
    made.iterate()
    assert torch.equal(weights(made.reference.model), first)
    made.iterate()
    second = weights(made.model)
    torch.testing.assert_close(weights(made.reference.model), 0.6 * second + 0.4 * first)
    made.iterate()
    torch.testing.assert_close(weights(made.reference.model), 0.6 * second + 0.4 * first)
    made.iterate()
    torch.testing.assert_close(weights(made.reference.model), 0.6 * weights(made.model) + 0.24 * second + 0.16 * first)
    assert not any(parameter.requires_grad for parameter in made.reference.model.parameters())
    assert archive.read(made.save_checkpoint(), {}).group("reference")


def test_what_is_read_and_nothing_else_is_the_reference(tmp_path):
    """A full share makes the reference the policy, and the KL 0."""
    made = trainer(tmp_path, learning_rate=0.05, **FOLLOWING | {"ref_model_sync_steps": 1, "ref_model_mixup_alpha": 1.0})
    assert [made.iterate()["kl_ref"] for _ in range(3)] == pytest.approx([0.0] * 3, abs=1e-6)
