"""`REBELConfig`: every number that language-model training takes, with its unit, default and limits."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from rlopt.arguments import check_choice, check_number
from rlopt.estimators.rebel import Form, KLMode

Loss = Literal["rebel", "rloo", "grpo", "ppo", "ipo"]
EtaMode = Literal["fixed", "std", "kl_target"]
Pairing = Literal["all", "best_worst", "random"]
Anchor = Literal["iteration", "reference"]
Schedule = Literal["linear", "cosine", "constant"]

# ℓ(x, y, y') of pairs of completions; see `REBELConfig.preference_fn`.
Preference = Callable[..., Sequence[float]]

# Fields of `REBELConfig` under the names that `GenerationConfig` has for them; a second value would contradict the first.
OWN_GENERATION = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "max_new_tokens": "max_completion_length",
    "max_length": "max_completion_length",
    "num_return_sequences": "num_generations",
    "eos_token_id": "stop_at_end_token, and the tokenizer",
    "pad_token_id": "the tokenizer",
    "return_dict_in_generate": "nothing: generate has to return ids",
}

# From here on a clipped gradient keeps nothing of η but the direction (specification §1.7: another regime).
LARGE_ETA = 100.0


@dataclass(frozen=True, kw_only=True)
class REBELConfig:
    """The settings of `REBELTrainer`, named as TRL's where TRL has them.

    An *iteration* samples `num_generations` completions of each of its prompts, scores them and regresses. A *micro-batch*
    is one forward and backward pass; `gradient_accumulation_steps` of them make an optimiser step; `steps_per_generation`
    of them are sampled together. Where a completion's length is meant, it is in tokens, the end token included.

    Raises:
        ValueError: a number out of its range, names the field; G < 2; a group that a micro-batch would split, without
            `two_pass`; ηβ of 2 or more with `kl_mode="reward"`, which diverges.
        UserWarning: ηβ > 1 with `kl_mode="reward"`; η of 100 or more with clipped gradients.
    """

    output_dir: str = "rebel"
    loss: Loss = "rebel"
    """"rebel", or a baseline with the same samples: "rloo", "grpo", "ppo" (adds a value head), "ipo"."""

    eta: float = 1.0
    """η > 0, the size of the policy's step: π_{t+1} ∝ π_t e^{ηr}. With `eta_mode="std"` it is κ."""
    eta_mode: EtaMode = "fixed"
    """"std": η = κ / std(r) within groups; "kl_target": η = √(2ε / Var r), anew every iteration, and with
    `kl_mode="reward"` 1/β at most."""
    kl_target: float = 0.01
    """ε in nats a completion, for `eta_mode="kl_target"`."""
    loss_form: Form = "code"
    """"code": (Δh − ηΔr)²; "paper": that divided by η²."""
    anchor: Anchor | None = None
    """What log-ratios are taken against: "iteration" (π_t, refreshed every iteration) or "reference" (the first model).
    None: "reference" for "ipo", "iteration" for all others."""
    beta: float = 0.05
    """β ≥ 0, weight of the sequence's KL to the reference model. For "ipo" its τ: Δh is regressed on 1/(2β)."""
    kl_mode: KLMode = "reward"
    """"reward": r − β(ln π_t − ln π_ref); "prox": in the regression, stable for every ηβ."""
    sync_ref_model: bool = False
    """Let π_ref follow: every `ref_model_sync_steps` iterations θ_ref ← αθ + (1 − α)θ_ref, α = `ref_model_mixup_alpha`. The
    reference is then in checkpoints. Not with an adapter, whose reference is the model without it."""
    ref_model_sync_steps: int = 512
    ref_model_mixup_alpha: float = 0.6
    pairing: Pairing = "all"
    """Of a group, the regression has all pairs, the best and the worst completion, or two drawn at random."""
    explained_stop: float | None = None
    """End an iteration's regression once it has explained this share of its loss, in (0, 1]."""
    approx_kl_stop: float | None = None
    """End it once ½ E[(ln π_θ/π_t)²] exceeds this, in nats a completion."""

    num_generations: int = 2
    """G ≥ 2, completions of a prompt."""
    num_iterations: int = 4
    """Epochs over an iteration's completions (with a stop: at most)."""
    temperature: float = 1.0
    """T > 0, of sampling and of every log-probability."""
    top_p: float = 1.0
    top_k: int = 0
    """0: all tokens. Like `top_p` and `min_p` it narrows sampling, never the log-probabilities."""
    min_p: float = 0.0
    max_completion_length: int = 256
    stop_at_end_token: bool = True
    """False: completions have `max_completion_length` tokens, whatever these are."""
    generation_kwargs: dict[str, Any] = field(default_factory=dict)
    """More of `transformers.GenerationConfig`. What bends sampling, a repetition penalty for instance, is not in the
    log-probabilities."""
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)

    reward_weights: Sequence[float] | None = None
    """One for each reward function; None: 1."""
    reward_clip_range: tuple[float, float] | None = None
    missing_eos_score: float | None = None
    """Replaces the score of a completion that was cut off."""
    missing_eos_penalty: float | None = None
    """Subtracted from the score of a completion that was cut off."""
    mask_truncated_completions: bool = False
    """Leave completions that were cut off out of the regression, and groups of which fewer than two remain. They are scored
    and logged, and the baselines' group means have them."""
    preference_fn: Preference | None = None
    """f(prompts, completions, others, **columns) -> ℓ in [−1, 1] of each pair, 2 P(completion ≻ other) − 1; every pair of a
    group is asked once. Then a completion's score is (1/G) Σ_j ℓ(y_i, y_j), and reward functions are not needed."""
    offline_column: str | None = None
    """Column with one answer, or a list of answers, that stand in a group in place of samples; with G of them nothing is
    sampled. Texts, or token ids without the end token, which is appended."""
    offline_score_column: str | None = None
    """Column with the scores of these answers, as many as answers; where all are scored, no reward function is needed."""

    per_device_train_batch_size: int = 8
    """Completions of a micro-batch: a multiple of G, or with `two_pass` any number."""
    gradient_accumulation_steps: int = 1
    steps_per_generation: int | None = None
    """Micro-batches sampled together, a multiple of `gradient_accumulation_steps`, the default."""
    two_pass: bool = False
    """Evaluate groups without gradient first, then differentiate them in pieces of any size: the same gradient for one more
    forward pass. For "rebel"."""
    max_iterations: int | None = None
    """None: as many as `num_train_epochs` passes over the prompts take."""
    num_train_epochs: float = 1.0

    learning_rate: float = 1e-6
    lr_scheduler: Schedule = "linear"
    """By iteration, to 0."""
    warmup_ratio: float = 0.0
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    max_grad_norm: float | None = 1.0

    clip_range: float = 0.2
    """ε of "grpo", "ppo" and, with more than one optimiser step an iteration, "rloo"."""
    clip_range_value: float = 0.2
    vf_coef: float = 0.1
    gamma: float = 1.0
    gae_lambda: float = 0.95

    model_init_kwargs: dict[str, Any] = field(default_factory=dict)
    """For `from_pretrained` where the model is given by path; "dtype" is float32 unless it is here."""
    bf16: bool = False
    """Run the model in bfloat16 (autocast); log-probabilities are float32 in any case."""
    gradient_checkpointing: bool = False
    device: str = "auto"
    seed: int = 0

    logging_dir: str | None = None
    """None: `output_dir`/logs."""
    log_completions: bool = False
    """Write some of each logged iteration's completions, with scores, to TensorBoard's Text tab."""
    logging_steps: int = 1
    """Iterations between lines of the log."""
    save_steps: int | None = 100
    """Iterations between checkpoints; None: none."""
    eval_steps: int | None = None
    progress_bar: bool = True

    def __post_init__(self) -> None:
        _check_choices(self)
        _check_numbers(self)
        self._check_batches()
        if self.loss == "ipo" and not self.beta:
            raise ValueError("beta: expected a positive number with loss='ipo', which regresses on 1/(2β), got 0")
        if self.loss == "rebel":
            self._check_step_size()
        if self.offline_score_column is not None and self.offline_column is None:
            raise ValueError("offline_score_column: expected offline_column beside it, got None there")
        if self.sync_ref_model and not self.needs_reference:
            raise ValueError("sync_ref_model: expected beta > 0, or anchor='reference': without them there is no reference")

    @property
    def group_size(self) -> int:
        """K, members of a group that the regression has."""
        return self.num_generations if self.pairing == "all" else 2

    @property
    def groups_per_step(self) -> int:
        """Groups of an optimiser step."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps // self.num_generations

    @property
    def prompts_per_iteration(self) -> int:
        """P, different prompts of an iteration."""
        micro_batches = self.steps_per_generation or self.gradient_accumulation_steps
        return self.per_device_train_batch_size * micro_batches // self.num_generations

    @property
    def resolved_anchor(self) -> Anchor:
        """`anchor` with its default filled in."""
        return self.anchor or ("reference" if self.loss == "ipo" else "iteration")

    @property
    def needs_reference(self) -> bool:
        """Whether the first model's log-probabilities are computed."""
        return self.resolved_anchor == "reference" or (self.beta > 0 and self.loss != "ipo")

    def _check_batches(self) -> None:
        size, generations = self.per_device_train_batch_size, self.num_generations
        if self.two_pass and self.loss != "rebel":
            raise ValueError(f"two_pass: expected loss='rebel' with it, got {self.loss!r}")
        if size % generations and not self.two_pass:
            raise ValueError(
                f"per_device_train_batch_size: expected a multiple of num_generations={generations}, got {size}; a group that"
                " does not fit needs two_pass=True"
            )
        if size * self.gradient_accumulation_steps % generations:
            raise ValueError(
                "gradient_accumulation_steps: expected whole groups in an optimiser step, got "
                f"{size} x {self.gradient_accumulation_steps} completions with num_generations={generations}"
            )
        if (self.steps_per_generation or 0) % self.gradient_accumulation_steps:
            raise ValueError(
                f"steps_per_generation: expected a multiple of gradient_accumulation_steps={self.gradient_accumulation_steps},"
                f" got {self.steps_per_generation}"
            )
        if self.pairing != "all" and self.loss not in ("rebel", "ipo"):
            raise ValueError(f"pairing: expected 'all' with loss={self.loss!r}, got {self.pairing!r}")

    def _check_step_size(self) -> None:
        if self.eta_mode == "fixed" and self.kl_mode == "reward":
            _check_contraction(self.eta, self.beta)
        if self.eta >= LARGE_ETA and self.max_grad_norm is not None:
            warnings.warn(
                f"eta: {self.eta:g} with max_grad_norm={self.max_grad_norm:g}: clipping keeps the direction alone, and the"
                " learning rate is the size of the step",
                stacklevel=4,
            )


def _check_contraction(eta: float, beta: float) -> None:
    """Raises ValueError if ηβ is 2 or more, which diverges with the KL in the reward; warns above 1, which oscillates."""
    if eta * beta >= 2:
        raise ValueError(
            f"eta: expected eta * beta below 2 with kl_mode='reward', which contracts by |1 − ηβ|, got {eta * beta:g};"
            " kl_mode='prox' has no such limit"
        )
    if eta * beta > 1:
        warnings.warn(f"eta: eta * beta = {eta * beta:g} is above 1: iterates will oscillate around π*", stacklevel=5)


def _check_choices(args: REBELConfig) -> None:
    choices = {"loss": Loss, "eta_mode": EtaMode, "loss_form": Form, "kl_mode": KLMode, "pairing": Pairing}
    for name, kind in (choices | {"lr_scheduler": Schedule}).items():
        check_choice(name, getattr(args, name), get_args(kind))
    if args.anchor is not None:
        check_choice("anchor", args.anchor, get_args(Anchor))


def _check_numbers(args: REBELConfig) -> None:
    for name in ("eta", "kl_target", "temperature", "num_train_epochs", "adam_epsilon"):
        check_number(name, getattr(args, name), positive=True)
    for name in ("learning_rate", "beta", "weight_decay", "vf_coef"):
        check_number(name, getattr(args, name), at_least=0)
    for name in ("min_p", "warmup_ratio", "adam_beta1", "adam_beta2", "gamma", "gae_lambda"):
        check_number(name, getattr(args, name), at_least=0, at_most=1)
    for name in ("top_p", "ref_model_mixup_alpha"):
        check_number(name, getattr(args, name), positive=True, at_most=1)
    for name in ("clip_range", "clip_range_value"):
        check_number(name, getattr(args, name), positive=True)
    counts = ("num_iterations", "max_completion_length", "per_device_train_batch_size", "gradient_accumulation_steps")
    for name in (*counts, "logging_steps", "ref_model_sync_steps"):
        check_number(name, getattr(args, name), positive=True, whole=True)
    check_number("num_generations", args.num_generations, at_least=2, whole=True)
    check_number("top_k", args.top_k, at_least=0, whole=True)
    check_number("seed", args.seed, at_least=0, whole=True)
    for name in ("steps_per_generation", "max_iterations", "save_steps", "eval_steps"):
        if getattr(args, name) is not None:
            check_number(name, getattr(args, name), positive=True, whole=True)
    for name in ("approx_kl_stop", "max_grad_norm"):
        if getattr(args, name) is not None:
            check_number(name, getattr(args, name), positive=True)
    if args.explained_stop is not None:
        check_number("explained_stop", args.explained_stop, positive=True, at_most=1)
    for name in ("missing_eos_score", "missing_eos_penalty"):
        if getattr(args, name) is not None:
            check_number(name, getattr(args, name))
    _check_rewards(args)
    for name in OWN_GENERATION.keys() & args.generation_kwargs.keys():
        raise ValueError(f"generation_kwargs: expected it without {name!r}, which is decided by {OWN_GENERATION[name]}")


def _check_rewards(args: REBELConfig) -> None:
    for weight in args.reward_weights or ():
        check_number("reward_weights", weight)
    if args.reward_clip_range is not None:
        low, high = args.reward_clip_range
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"reward_clip_range: expected finite (low, high) with low < high, got {args.reward_clip_range!r}")
