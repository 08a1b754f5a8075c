"""How users come by a reducer: `create` around a stock model, or `load` from a folder or the hub."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import transformers

from methods.base import TokenReducer
from methods.config import ReducerConfig
from methods.native import class_of
from methods.registry import lookup

# Keywords that say where files are: the configuration lies beside the weights.
WHERE = ("subfolder", "revision", "token", "cache_dir", "local_files_only", "force_download", "proxies")


def create(name: str, model: transformers.PreTrainedModel, **options: Any) -> TokenReducer:
    """Put the method `name` on `model`, a task model of a supported family and head (`methods.backbone.ARCHITECTURES`).

    Raises:
        KeyError: unknown method. ValueError: unsupported model, head or option; a name instead of a model.
    """
    if isinstance(model, str | os.PathLike):
        raise ValueError(
            "give create a loaded model, not its name: "
            f"AutoModelForSequenceClassification.from_pretrained({str(model)!r})"
        )
    return lookup(name).around(model, **options)


def load(path: str, **kwargs: Any) -> TokenReducer:
    """Load what `save_pretrained` wrote: JSON and safetensors only.

    Args:
        kwargs: as `from_pretrained` of transformers' models takes them (subfolder, revision, token, dtype, ...).
    Raises:
        ValueError: `path` holds no reducer, or not all of its weights.
    """
    if not Path(path).is_dir() and (str(path).startswith((".", "/", "~")) or str(path).count("/") > 1):
        raise ValueError(f"there is no folder '{path}'")  # no name on the hub either: nobody needs to be asked
    try:
        config = ReducerConfig.from_pretrained(path, **{name: kwargs[name] for name in WHERE if name in kwargs})
    except (OSError, ValueError) as error:
        raise ValueError(f"'{path}' is neither a folder that holds a saved reducer nor one on the hub") from error
    if not isinstance(config, ReducerConfig) or config.model_type != ReducerConfig.model_type:
        raise ValueError(f"'{path}' holds a '{config.model_type}' model, not a saved reducer")
    return class_of(config).from_pretrained(path, config=config, **kwargs)
