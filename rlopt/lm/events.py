"""transformers' `TrainerCallback`s: what they are told, and what they may ask for."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainingArguments
from transformers import TrainerState as CallbackState

if TYPE_CHECKING:
    from rlopt.lm.trainer import REBELTrainer

# What `EarlyStoppingCallback` watches.
WATCHED = "eval_reward"


class Events:
    """The `TrainerCallback`s of a trainer, with the values that they are handed. A step is an iteration.

    Told are `on_init_end`, `on_train_begin`, `on_step_begin`, `on_step_end`, `on_evaluate`, `on_log`, `on_save` and
    `on_train_end`; epochs and the optimiser's own steps are not. `control.should_training_stop`, `should_log`,
    `should_evaluate` and `should_save` are obeyed. `args` is a `TrainingArguments` with the settings that both know.

    Args:
        trainer: whose training it is.
        callbacks: none, or some.
    """

    def __init__(self, trainer: REBELTrainer, callbacks: Sequence[TrainerCallback]) -> None:
        self.trainer, self.callbacks = trainer, list(callbacks)
        self.control, self.state = TrainerControl(), CallbackState()
        self.arguments = _arguments(trainer) if self.callbacks else None
        self._tell("on_init_end")

    def snapshot(self) -> dict[str, Any]:
        """What callbacks are handed and may have changed; what they themselves remember is theirs to keep."""
        return json.loads(json.dumps(dataclasses.asdict(self.state), default=str)) if self.callbacks else {}

    def restore(self, snapshot: dict[str, Any]) -> None:
        """The inverse of `snapshot`."""
        if self.callbacks and snapshot:
            names = {field.name for field in dataclasses.fields(CallbackState)}
            self.state = CallbackState(**{name: value for name, value in snapshot.items() if name in names})

    def train_begins(self) -> None:
        """Before the first iteration of `train`."""
        args = self.trainer.args
        self.control.should_training_stop = False
        self.state.max_steps, self.state.num_train_epochs = self.trainer.total_iterations, int(args.num_train_epochs)
        self.state.logging_steps, self.state.train_batch_size = args.logging_steps, args.per_device_train_batch_size
        self._tell("on_train_begin")

    def step_begins(self) -> None:
        """Before an iteration."""
        self.control.should_log = self.control.should_evaluate = self.control.should_save = False
        self._tell("on_step_begin")

    def step_ended(self) -> None:
        """After an iteration; what `control` then asks for is done next."""
        self._tell("on_step_end")

    def evaluated(self, metrics: Mapping[str, float]) -> None:
        """After an evaluation; metrics have transformers' names ("eval_reward") beside ours."""
        theirs = {key.replace("/", "_"): value for key, value in metrics.items()}
        self._tell("on_evaluate", metrics={**metrics, **theirs})
        # After they were told, as transformers does: early stopping compares with the best before.
        score = metrics["eval/reward"]
        if self.state.best_metric is None or score > self.state.best_metric:
            self.state.best_metric, self.state.best_global_step = score, self.state.global_step

    def logged(self, metrics: Mapping[str, float]) -> None:
        """After a line of the log, which they may read but not change."""
        if not self.callbacks:
            return
        self.state.log_history.append({**metrics, "step": self.state.global_step})
        self._tell("on_log", logs=dict(metrics))

    def saved(self) -> None:
        """After a checkpoint."""
        self._tell("on_save")

    def train_ended(self) -> None:
        """After the last iteration."""
        self._tell("on_train_end")

    def _tell(self, event: str, **more: Any) -> None:
        if not self.callbacks:
            return
        trainer, progress = self.trainer, self.trainer.state
        self.state.global_step, self.state.epoch = progress.iteration, progress.passes
        for callback in self.callbacks:
            control = getattr(callback, event)(
                self.arguments,
                self.state,
                self.control,
                model=trainer.model,
                processing_class=trainer.processing_class,
                optimizer=trainer.optimizer,
                lr_scheduler=None,
                train_dataloader=None,
                eval_dataloader=None,
                **more,
            )
            self.control = control or self.control


def sorted_callbacks(given: Sequence[Any]) -> tuple[list[Callable[..., Any]], list[TrainerCallback]]:
    """Functions of (trainer, metrics), and transformers' callbacks, which may be given as classes.

    Raises:
        ValueError: something that is neither.
    """
    functions, callbacks = [], []
    for entry in given if isinstance(given, list | tuple) else [given]:
        if isinstance(entry, TrainerCallback) or (isinstance(entry, type) and issubclass(entry, TrainerCallback)):
            callbacks.append(entry() if isinstance(entry, type) else entry)
        elif callable(entry) and not isinstance(entry, type):
            functions.append(entry)
        else:
            raise ValueError(
                f"callbacks: expected functions f(trainer, metrics), or transformers.TrainerCallback objects, got {entry!r}"
            )
    return functions, callbacks


def _arguments(trainer: REBELTrainer) -> TrainingArguments:
    args = trainer.args
    return TrainingArguments(
        output_dir=args.output_dir,
        per_device_train_batch_size=args.per_device_train_batch_size,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        learning_rate=args.learning_rate,
        weight_decay=args.weight_decay,
        max_steps=trainer.total_iterations,
        num_train_epochs=args.num_train_epochs,
        logging_steps=args.logging_steps,
        save_strategy="no" if args.save_steps is None else "steps",
        save_steps=args.save_steps or 1,
        eval_strategy="no" if args.eval_steps is None else "steps",
        eval_steps=args.eval_steps,
        metric_for_best_model=WATCHED,
        greater_is_better=True,
        seed=args.seed,
        report_to="none",
        use_cpu=trainer.device.type == "cpu",
    )
