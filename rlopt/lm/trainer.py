"""`REBELTrainer`: sample, score, regress.

    repeat
        draw G completions of each of P prompts from π_t                                  sample
        score them; with a reference, r ← r − β(ln π_t − ln π_ref)                          score
        θ_{t+1} = argmin_θ Σ pairs of a prompt (ln π_θ/π_t(y) − ln π_θ/π_t(y') − η(r − r'))²    regress

Source: Gao et al., arXiv:2404.16767, algorithm 1.
"""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.logger import Logger
from torch import Tensor, nn
from tqdm import tqdm

from rlopt.estimators.rebel import eta_from_kl, eta_from_std
from rlopt.folder_lock import FolderLock
from rlopt.lm import checkpointing, diagnostics, models, tracking
from rlopt.lm.arguments import REBELConfig
from rlopt.lm.batches import make_batch
from rlopt.lm.data import check_dataset
from rlopt.lm.drawing import Sampled, draw
from rlopt.lm.events import Events, sorted_callbacks
from rlopt.lm.log_probs import Reader, Reading
from rlopt.lm.losses import Batch
from rlopt.lm.pairing import chosen_rows, counted_groups
from rlopt.lm.prompts import PromptOrder, make_codec
from rlopt.lm.reference import reference_of
from rlopt.lm.regression import regress
from rlopt.lm.rewards import Scores, as_reward_functions, compare, score
from rlopt.lm.sampling import Sampler, generate

Callback = Callable[["REBELTrainer", Mapping[str, float]], bool | None]

# Iterations in a row that explain less than this before the trainer says so.
UNSOLVED, PATIENCE = 0.05, 10


@dataclass
class TrainerState:
    """Counters; all of them are in a checkpoint."""

    iteration: int = 0
    num_updates: int = 0
    """Optimiser steps."""
    num_tokens: int = 0
    """Of completions, sampled or from the data."""
    num_rows: int = 0
    """Of the data set."""
    epoch: int = 0
    position: int = 0
    """Rows of this epoch that were used."""

    @property
    def global_step(self) -> int:
        """`iteration`, under the name that reward functions written for TRL look for."""
        return self.iteration

    @property
    def passes(self) -> float:
        """Epochs so far, with their fraction."""
        return self.epoch + self.position / max(1, self.num_rows)


class REBELTrainer:
    """Trains a causal language model on rewards of its own completions.

    Args:
        model: a `PreTrainedModel`, a `PeftModel`, or a path or name to load one from (safetensors only).
        reward_funcs: f(prompts, completions, completion_ids, **columns) -> list of numbers or None, `async` or not; a
            sequence-classification model, or its path; or a list of these. Functions get the arguments they name, all of
            them with `**kwargs`; `trainer_state` is among them.
        args: the settings.
        train_dataset: a sequence of rows, such as a `datasets.Dataset`, with a column "prompt": text, a conversation, or
            token ids. Reward functions get the other columns.
        eval_dataset: the same, for `evaluate`.
        processing_class: the tokenizer; loaded beside a model given by path. None where prompts are token ids.
        peft_config: train an adapter; the model without it is the reference.
        callbacks: f(trainer, metrics) after every iteration, which ends the training by returning False; and transformers'
            `TrainerCallback`s, see `rlopt.lm.events.Events`. What these remember is not in checkpoints.
        optimizer: over the trained parameters; AdamW by default. The learning rates of its groups are what `lr_scheduler`
            starts from.
        sampler: `rlopt.lm.sampling.generate`, or another function of its form. It need not give log-probabilities: those
            come from the model that is trained.

    Raises:
        ValueError: a missing column, no reward, a tokenizer without end token, no data for `eval_steps`, a callback that is
            none, an adapter with `sync_ref_model`, or several processes, which are not supported.
        UserWarning: trained parameters of half precision.
    """

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: REBELConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        peft_config: Any = None,
        callbacks: Sequence[Any] = (),
        optimizer: torch.optim.Optimizer | None = None,
        sampler: Sampler = generate,
    ) -> None:
        self.args = args or REBELConfig()
        _check_alone()
        if isinstance(model, str):
            processing_class = processing_class or models.load_tokenizer(model)
            model = models.load_model(model, self.args.model_init_kwargs)
        if peft_config is not None:
            model = models.with_adapter(model, peft_config)
        self.model, self.device = models.prepared(model, self.args.device, self.args.gradient_checkpointing)
        self.processing_class = processing_class
        self.codec = make_codec(processing_class, model, self.args.stop_at_end_token, self.args.chat_template_kwargs)
        self.reward_funcs = as_reward_functions(reward_funcs, self.device)
        self._check_rewards()
        self.train_dataset, self.eval_dataset = train_dataset, eval_dataset
        self._check_data()
        self.sampler = sampler
        self.reference = reference_of(self.model, self.args.needs_reference)
        if self.args.sync_ref_model and self.reference is not None and not self.reference.is_copy:
            raise ValueError("sync_ref_model: expected False with an adapter, whose reference is the model without it")
        self.value_head = self._make_value_head() if self.args.loss == "ppo" else None
        rows = max(self.args.per_device_train_batch_size, 1)
        self.reader = Reader(self.args.temperature, self.args.bf16, rows, self.value_head)
        self.optimizer = optimizer or self._make_optimizer()
        for group in self.optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])  # torch's name for what a schedule starts from
        self.generators = {
            name: torch.Generator().manual_seed(self.args.seed + offset) for offset, name in enumerate(("sampling", "order"))
        }
        self.state = TrainerState(num_rows=0 if train_dataset is None else len(train_dataset))
        self._unsolved = 0
        self._stop_requested = False
        self._logger: Logger | None = None
        self.callbacks: list[Callback]
        self.callbacks, listeners = sorted_callbacks(callbacks)
        self.events = Events(self, listeners)

    @cached_property
    def left_out(self) -> str:
        """Digest of what checkpoints do not have, see `rlopt.lm.checkpointing`."""
        return checkpointing.digest_of_left_out(self)

    @property
    def total_iterations(self) -> int:
        """Iterations of a whole training."""
        if self.args.max_iterations is not None:
            return self.args.max_iterations
        return max(1, math.ceil(self.args.num_train_epochs * self.state.num_rows / self.args.prompts_per_iteration))

    def train(self, resume_from_checkpoint: bool | str | Path | None = None) -> dict[str, float]:
        """Train to the last iteration; returns its metrics.

        Args:
            resume_from_checkpoint: a file, or True for the newest in `output_dir`; "auto" begins anew where there is none. One
                that is damaged is put aside, and the one before it taken. The trainer has to be made with the first model
                and the same data.

        Raises:
            ValueError: no data; a checkpoint that does not fit; what reward functions can do wrong.
            FloatingPointError: a gradient that is not finite.
        """
        if self.train_dataset is None:
            raise ValueError("train_dataset: expected a data set to train on, got None")
        with closing(FolderLock(Path(self.args.output_dir))):
            continued = self._resume(resume_from_checkpoint) if resume_from_checkpoint else None
            if self.state.iteration == 0 and (others := checkpointing.existing(self.args.output_dir)):
                raise ValueError(
                    f"output_dir: {self.args.output_dir} has {len(others)} checkpoints of another training; go on from there "
                    "with resume_from_checkpoint=True, or choose another folder"
                )
            return self._train(continued)

    def _train(self, continued: dict[str, Any] | None) -> dict[str, float]:
        metrics: dict[str, float] = {}
        logger = self._logger = tracking.open_log(self.args, continued)
        self.events.train_begins()
        bar = tqdm(total=self.total_iterations, initial=self.state.iteration, disable=not self.args.progress_bar)
        try:
            while self.state.iteration < self.total_iterations:
                self.events.step_begins()
                metrics = self.iterate(logger)
                self.events.step_ended()
                self._record(logger, metrics)
                bar.update()
                bar.set_postfix({name: f"{metrics[name]:.3g}" for name in ("reward", "explained") if name in metrics})
                asked = [callback(self, metrics) for callback in self.callbacks]
                if self._stop_requested:
                    self.save_checkpoint()
                stops = self._stop_requested or self.events.control.should_training_stop
                if stops or any(answer is False for answer in asked):
                    break
            self.events.train_ended()
        finally:
            bar.close()
            logger.close()
            self._logger, self._stop_requested = None, False
        return metrics

    def request_stop(self) -> None:
        """Let training end after this iteration, with a checkpoint. Safe to call from a signal handler."""
        self._stop_requested = True

    def _resume(self, given: bool | str | Path) -> dict[str, Any]:
        """Go on from a checkpoint; how far log files were then."""
        path: str | Path | None = checkpointing.newest(self.args.output_dir) if given in (True, "auto") else str(given)
        if path is not None:
            return checkpointing.restore(self, path)
        if given is True:
            raise ValueError(f"resume_from_checkpoint: there is no checkpoint-*.zip in {self.args.output_dir}")
        return {}

    def iterate(self, logger: Any = None) -> dict[str, float]:
        """One iteration: sample, score, regress; returns its metrics."""
        args = self.args
        self._set_learning_rate()
        times = [time.perf_counter()]
        sampled = self.sample(self._next_rows(), self.generators["sampling"])
        times.append(time.perf_counter())
        scores = self.score(sampled)
        counted = sampled.ended if args.mask_truncated_completions else torch.ones_like(sampled.ended)
        counted = counted_groups(counted, args.num_generations)
        eta = self._eta(scores.total, counted)
        batch, before = make_batch(args, self.model, self.reference, self.reader, sampled.tokens, scores.total)
        completions = sampled.tokens.completions()
        generator = self.generators["order"]
        rows = chosen_rows(args.pairing, batch.rewards, completions, counted, args.num_generations, generator)
        times.append(time.perf_counter())
        metrics = self._regress(eta, batch.rows(rows.to(self.device))) if len(rows) else {}
        times.append(time.perf_counter())
        self.state.iteration += 1
        self.state.num_tokens += sum(map(len, completions))
        self._let_reference_follow()
        self._notice_unsolved(metrics)
        if args.log_completions and logger is not None and self.state.iteration % args.logging_steps == 0:
            asked = sampled.asked
            tracking.write_completions(logger, asked.prompts, asked.completions, scores.total, self.state.iteration)
        return {
            **diagnostics.of_completions(sampled.tokens, sampled.ended, before.entropy),
            **diagnostics.of_scores(scores.total, scores.parts, args.num_generations),
            **metrics,
            "eta": float(eta),
            "eta*beta": float(eta) * args.beta,
            "lr": self.optimizer.param_groups[0]["lr"],
            "num_tokens": float(self.state.num_tokens),
            "epoch": self.state.passes,
            "time/sampling": times[1] - times[0],
            "time/scoring": times[2] - times[1],
            "time/regressing": times[3] - times[2],
        }

    def sample(self, rows: Sequence[Mapping[str, Any]], generator: torch.Generator, args: REBELConfig | None = None) -> Sampled:
        """G completions of every row's prompt, by π_t or from the data; see `rlopt.lm.drawing`."""
        columns = {"trainer_state": self.state}
        return draw(self.model, rows, args or self.args, self.codec, self.sampler, generator, self.device, columns)

    def score(self, sampled: Sampled) -> Scores:
        """What completions earned, by comparison or by reward functions, with the rule for those that were cut off."""
        args = self.args
        total, parts = sampled.offline_scores.clone(), {}
        unscored = total.isnan()
        if args.preference_fn is not None:
            total = compare(args.preference_fn, sampled.asked, args.num_generations)
        elif bool(unscored.any()):
            index = unscored.nonzero()[:, 0]
            scores = score(self.reward_funcs, args.reward_weights, sampled.asked.rows(index.tolist()))
            total[index] = scores.total
            parts = scores.parts
        if args.reward_clip_range is not None:
            total = total.clamp(*args.reward_clip_range)
        if args.missing_eos_score is not None:
            total = torch.where(sampled.ended, total, torch.full_like(total, args.missing_eos_score))
        if args.missing_eos_penalty is not None:
            total = total - args.missing_eos_penalty * (~sampled.ended).to(total.dtype)
        return Scores(total, parts)

    def evaluate(self) -> dict[str, float]:
        """Mean reward and lengths of G completions of every prompt of `eval_dataset`; changes no generator.

        Raises:
            ValueError: there is no `eval_dataset`, or no reward function.
        """
        if not self.reward_funcs or self.args.preference_fn is not None:
            raise ValueError("reward_funcs: expected a reward function to evaluate with, got none")
        if self.eval_dataset is None:
            raise ValueError("eval_dataset: expected a data set to evaluate on, got None")
        generator = torch.Generator().manual_seed(self.args.seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # said when the settings were made
            own = replace(self.args, offline_column=None, offline_score_column=None)
        size = self.args.prompts_per_iteration
        found = []
        for start in range(0, len(self.eval_dataset), size):
            rows = [self.eval_dataset[i] for i in range(start, min(start + size, len(self.eval_dataset)))]
            sampled = self.sample(rows, generator, own)
            scores = self.score(sampled).total
            found.append(torch.stack([scores, sampled.tokens.mask.sum(1).cpu().float(), sampled.ended.float()], 1))
        reward, length, ended = torch.cat(found).mean(0).tolist()
        return {"eval/reward": reward, "eval/mean_length": length, "eval/clipped_ratio": 1.0 - ended}

    def save_model(self, output_dir: str | Path | None = None) -> Path:
        """Write the model, or its adapter, and the tokenizer as transformers does (safetensors); returns the folder."""
        target = Path(output_dir or self.args.output_dir)
        self.model.save_pretrained(target)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(target)
        return target

    def save_checkpoint(self, path: str | Path | None = None) -> Path:
        """Write what `train(resume_from_checkpoint=…)` goes on from, to the bit; returns the file."""
        target = checkpointing.checkpoint_path(self.args.output_dir, self.state.iteration) if path is None else Path(path)
        checkpointing.save(self, target, self._logger)
        return target

    def _regress(self, eta: Tensor, batch: Batch) -> dict[str, float]:
        """Minimise the loss over a batch; returns what it did."""
        self.model.train(self.args.gradient_checkpointing)  # dropout is 0 either way
        done = regress(self.args, eta, self.model, self.reader, self.optimizer, batch, self.generators["order"])
        self.model.eval()
        before = Reading(batch.old, batch.old.new_zeros(0), batch.values)
        after = self.reader.evaluate(self.model, batch.tokens)
        self.state.num_updates += done.steps
        metrics = diagnostics.of_regression(self.args, eta, batch, before, after)
        return metrics | {"grad_norm": done.grad_norm, "updates": float(done.steps), "stopped": float(done.stopped)}

    def _let_reference_follow(self) -> None:
        args = self.args
        if args.sync_ref_model and self.reference is not None and self.state.iteration % args.ref_model_sync_steps == 0:
            self.reference.follow(self.model, args.ref_model_mixup_alpha)

    def _eta(self, scores: Tensor, counted: Tensor) -> Tensor:
        """η of this iteration, from the scores [N] of completions that count [N]; a scalar on the trainer's device."""
        args, groups = self.args, torch.arange(len(scores)) // self.args.num_generations
        if args.loss != "rebel" or args.eta_mode == "fixed" or not bool(counted.any()):
            return torch.tensor(args.eta, device=self.device)
        scores, groups = scores[counted], groups[counted]
        eta = eta_from_std(scores, args.eta, groups) if args.eta_mode == "std" else eta_from_kl(scores, args.kl_target, groups)
        if args.kl_mode == "reward" and args.beta:
            # ηβ = 1 goes to π* at once; a larger step would go past it
            eta = eta.clamp_max(1.0 / args.beta)
        return eta.float().to(self.device)

    def _record(self, logger: Any, metrics: dict[str, float]) -> None:
        """Evaluate, log and save where this iteration's number, or a callback, says so."""
        args, iteration, events = self.args, self.state.iteration, self.events
        if events.control.should_evaluate or (args.eval_steps is not None and iteration % args.eval_steps == 0):
            metrics |= (found := self.evaluate())
            events.evaluated(found)
        if events.control.should_log or iteration % args.logging_steps == 0 or iteration == self.total_iterations:
            tracking.write(logger, metrics, iteration)
            events.logged(metrics)
        if events.control.should_save or (args.save_steps is not None and iteration % args.save_steps == 0):
            self.save_checkpoint()
            events.saved()

    def _notice_unsolved(self, metrics: Mapping[str, float]) -> None:
        self._unsolved = self._unsolved + 1 if metrics.get("explained", math.nan) < UNSOLVED else 0
        if self._unsolved == PATIENCE:
            warnings.warn(
                f"explained: below {UNSOLVED:g} for {PATIENCE} iterations: eta is too large for this learning_rate and"
                " num_iterations, the regression is not solved",
                stacklevel=3,
            )

    def _set_learning_rate(self) -> None:
        done, warmup = self.state.iteration, self.args.warmup_ratio * self.total_iterations
        progress = min(1.0, done / self.total_iterations)
        factor = {"constant": 1.0, "linear": 1.0 - progress, "cosine": 0.5 * (1.0 + math.cos(math.pi * progress))}
        share = factor[self.args.lr_scheduler] * min(1.0, (done + 1) / max(warmup, 1.0))
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * share

    def _next_rows(self) -> list[Mapping[str, Any]]:
        order = PromptOrder(self.state.num_rows, self.args.seed, self.state.epoch, self.state.position)
        rows = [self.train_dataset[i] for i in order.take(self.args.prompts_per_iteration)]
        self.state.epoch, self.state.position = order.epoch, order.position
        return rows

    def _check_rewards(self) -> None:
        if self.args.preference_fn is not None and self.reward_funcs:
            raise ValueError("preference_fn: expected no reward_funcs beside it, comparisons are the reward")
        if not self.reward_funcs and self.args.preference_fn is None and self.args.offline_score_column is None:
            raise ValueError("reward_funcs: expected a reward function, a preference_fn or an offline_score_column, got none")

    def _check_data(self) -> None:
        args = self.args
        check_dataset("train_dataset", self.train_dataset, ["prompt", args.offline_column, args.offline_score_column])
        check_dataset("eval_dataset", self.eval_dataset, ["prompt"])
        if args.eval_steps is not None and (self.eval_dataset is None or not self.reward_funcs):
            missing = "a data set" if self.eval_dataset is None else "a reward function"
            raise ValueError(f"eval_steps: expected None without {missing} to evaluate with, got {args.eval_steps}")

    def _make_value_head(self) -> nn.Linear:
        config = self.model.config.get_text_config()
        # From zero: the first advantages are the returns.
        head = nn.Linear(config.hidden_size, 1, device=self.device)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        return head

    def _make_optimizer(self) -> torch.optim.Optimizer:
        args = self.args
        parameters = list(models.trained(self.model).values())
        if not parameters:
            raise ValueError("model: expected parameters that require gradients, all are frozen")
        if self.value_head is not None:
            parameters += list(self.value_head.parameters())
        return torch.optim.AdamW(
            parameters,
            lr=args.learning_rate,
            betas=(args.adam_beta1, args.adam_beta2),
            eps=args.adam_epsilon,
            weight_decay=args.weight_decay,
        )


def _check_alone() -> None:
    """Raises ValueError if this is one of several processes: each would train a model of its own."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes > 1:
        raise ValueError(f"WORLD_SIZE: expected one process, got {processes}; REBELTrainer does not share gradients yet")
