"""One training stage of a method inside `transformers.Trainer`, which knows of optimizers but not of methods."""

from __future__ import annotations

from typing import Any

import transformers

from methods.recipes import Stage


class StageCallback(transformers.TrainerCallback):
    """Tells a reducer how far training is, and when: `Trainer(model=reducer, callbacks=[StageCallback()])`.

    Schedules inside losses (a weight that rises) then follow the training, and parameters are projected after each
    update. A method that learns something to be fixed at the end of a stage (PoWER-BERT's counts) needs its `stage`.

    Args:
        stage: of `reducer.stages(task)`; its begin and end are told too. Epochs, rates and batch size remain those of
            the `TrainingArguments`. None: the losses are the ones outside any stage.
    """

    def __init__(self, stage: Stage | None = None) -> None:
        self.stage = stage

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The stage begins; where training goes on from a checkpoint, it begins again."""
        if self.stage is not None:
            kwargs["model"].begin_stage(self.stage, state.max_steps)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Share of the updates done."""
        kwargs["model"].progress = state.global_step / state.max_steps

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """An update is done."""
        kwargs["model"].after_update()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The stage ends."""
        kwargs["model"].progress = 1.0
        if self.stage is not None:
            kwargs["model"].end_stage(self.stage)
