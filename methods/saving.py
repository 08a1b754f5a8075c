"""What a reducer has from transformers: reading and writing itself, with a card that says what it is worth."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn, Self

import huggingface_hub
import torch
import transformers

from methods.card import Facts, write_card
from methods.config import ReducerConfig
from methods.native import quiet_loading

HUB_ARGUMENTS = ("repo_id", "private", "token", "revision", "create_pr", "commit_message")


class SavedModel(transformers.PreTrainedModel):
    """A model of transformers that is saved as JSON and safetensors alone, beside a model card."""

    config_class = ReducerConfig
    supports_gradient_checkpointing = True
    base_model_prefix = "model"
    accepts_loss_kwargs = False  # losses are means: `Trainer` has to divide them when it accumulates gradients

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Self:
        """Load what `save_pretrained` wrote: JSON and safetensors only."""
        with quiet_loading():
            loaded = super().from_pretrained(*args, **kwargs | {"use_safetensors": True})
        own_memory(loaded[0] if isinstance(loaded, tuple) else loaded)
        return loaded

    def _replicate_for_data_parallel(self) -> NoReturn:
        raise ValueError(
            "reducers do not run in nn.DataParallel; use torchrun, or show one GPU by CUDA_VISIBLE_DEVICES=0"
        )

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Write config.json, model.safetensors and a model card, README.md; one of your own is left as it is."""
        hub = {name: kwargs.pop(name) for name in HUB_ARGUMENTS if name in kwargs}
        with quiet_loading():
            super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)
        if is_main_process:
            write_card(self, save_directory)  # type: ignore[arg-type]
            if push_to_hub:
                self.push_to_hub(hub.pop("repo_id", None) or Path(save_directory).name, **hub)

    def push_to_hub(  # type: ignore[override]
        self, repo_id: str, *, token: str | bool | None = None, private: bool | None = None, **commit: Any
    ) -> str:
        """Save to a repository of the hub, model card included.

        Args:
            commit: for `huggingface_hub.HfApi.upload_folder` (commit_message, revision, create_pr).
        Returns:
            The address of the commit.
        """
        api = huggingface_hub.HfApi(token=token)
        repository = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            commit.setdefault("commit_message", f"Upload {type(self).__name__}")
            return str(api.upload_folder(repo_id=repository, folder_path=folder, **commit))

    def note(self, **facts: Any) -> None:
        """Remember what was measured of this model, for its card; see `methods.card.Facts`. None forgets a fact.

        `train()` and `set_options` forget all: what was measured no longer holds.

        Raises:
            ValueError: an unknown fact, or a value that is no text or number.
        """
        self.config.facts = Facts.of(self.config.facts | facts).known()

    def train(self, mode: bool = True) -> Self:
        """As for any module; what was measured of the model is forgotten where it is about to learn."""
        if mode:
            self.config.facts = {}
        return super().train(mode)


def own_memory(model: torch.nn.Module) -> None:
    """Move weights to where torch allocates them.

    Loaded ones lie where the file has them, and kernels of some processors round otherwise at such addresses, so that a
    saved model would give logits that differ in the last bit.
    """
    with torch.no_grad():
        for weight in (*model.parameters(), *model.buffers()):
            weight.data = weight.data.clone()
