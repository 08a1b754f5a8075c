"""What a reducer has from transformers: reading and writing itself, with a card that says what it is worth."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, NoReturn, Self

import huggingface_hub
import torch
import transformers

from methods.card import Facts, write_card
from methods.config import Options, ReducerConfig
from methods.native import quiet_loading

HUB_ARGUMENTS = ("repo_id", "private", "token", "revision", "create_pr", "commit_message")
LISTED = 10  # weights that a message names


class SavedModel(transformers.PreTrainedModel):
    """A model of transformers that is saved as JSON and safetensors alone, beside a model card."""

    method_name: ClassVar[str]
    options_class: ClassVar[type[Options]]
    config_class = ReducerConfig
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    base_model_prefix = "model"
    accepts_loss_kwargs = False  # losses are means: `Trainer` has to divide them when it accumulates gradients

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Self:
        """Load what `save_pretrained` wrote: JSON and safetensors only.

        Raises:
            ValueError: a keyword that is an option of the method or of the stock model; weights that the checkpoint
                lacks, or has in another shape, since nothing could stand in for them.
        """
        _check_given(cls, kwargs)
        asked = {"use_safetensors": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
        with quiet_loading():
            result: Any = super().from_pretrained(*args, **kwargs | asked)
        loaded, info = result
        _check_whole(info["missing_keys"], info["mismatched_keys"])
        own_memory(loaded)
        return (loaded, info) if output_loading_info else loaded  # type: ignore[return-value]

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
        stock = self.model.config
        self.config.refresh(stock, getattr(self.get_input_embeddings(), "num_embeddings", stock.vocab_size))
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


def _check_given(cls: type[SavedModel], given: Mapping[str, Any]) -> None:
    """Refuse keywords of `from_pretrained` that belong elsewhere, before transformers stumbles over them."""
    config = given.get("config")
    for name in given:
        if name in {item.name for item in fields(cls.options_class)}:
            raise ValueError(f"{name} is an option of {cls.method_name}: load the reducer, then call set_options")
        if isinstance(config, ReducerConfig) and name in config.backbone_config and not hasattr(config, name):
            raise ValueError(f"{name} is the stock model's: set it in its configuration before create")


def _check_whole(missing: Iterable[str], mismatched: Iterable[tuple[str, Any, Any]]) -> None:
    """Refuse a checkpoint that lacks weights or has them in another shape: they would hold what lay in memory."""
    found = [*sorted(missing)]
    found += [f"{name} ({tuple(held)} instead of {tuple(own)})" for name, held, own in sorted(mismatched)]
    if found:
        more = f" and {len(found) - LISTED} more" if len(found) > LISTED else ""
        raise ValueError(
            "the checkpoint does not hold these weights of the reducer, or in another shape: "
            f"{', '.join(found[:LISTED])}{more}"
        )


def own_memory(model: torch.nn.Module) -> None:
    """Move weights to where torch allocates them.

    Loaded ones lie where the file has them, and kernels of some processors round otherwise at such addresses, so that a
    saved model would give logits that differ in the last bit.
    """
    with torch.no_grad():
        for weight in (*model.parameters(), *model.buffers()):
            weight.data = weight.data.clone()
