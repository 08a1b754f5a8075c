"""Stock models and tokenizers: where they come from and what they are called in records."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import embedded
from benchmarks.errors import UserError
from benchmarks.plain import content_hash
from benchmarks.tasks import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from methods import TokenReducer

PAPER_MODELS = {
    "BERT-base": "google-bert/bert-base-uncased",
    "RoBERTa-base": "FacebookAI/roberta-base",
    "DistilBERT": "distilbert/distilbert-base-uncased",
    "ALBERT": "albert/albert-base-v2",
}
REVISIONS = {  # of the hub, so that the paper profile means the same weights tomorrow
    "google-bert/bert-base-uncased": "86b5e0934494bd15c9632b12f734a8a67f723594",
    "FacebookAI/roberta-base": "e2da8e2f811d1448a5b465c236feacd80ffbac7b",
    "distilbert/distilbert-base-uncased": "12040accade4e8a0f71eabdb258fecc2e7e948be",
    "albert/albert-base-v2": "8e2f239c5f8a2c0f253781ca60135db913e5c80c",
}
HUB_TIMEOUT_S = 10
_DECIDING = (  # files of a folder that decide what a model answers, beside its configuration
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
)
_CHECK = {True: "", False: "; check --model"}  # whether it is a folder, which was looked for before


@dataclass(frozen=True)
class ModelRef:
    """A pre-trained encoder.

    Attributes:
        title: as tables print it. source: hub name or folder. identity: hub name (with the revision, where one is
            pinned), or "sha256:..." of what decides a folder's model: weights, configuration and tokenizer.
        family: model type ("bert"), from its configuration or, for hub names, from the name.
        revision: commit of the hub; None takes the newest.
    """

    title: str
    source: str
    identity: str
    family: str
    revision: str | None = None

    @property
    def is_folder(self) -> bool:
        """Whether the model lies on disk rather than on the hub."""
        return self.identity.startswith("sha256:")


def hub_model(title: str, name: str) -> ModelRef:
    """A model of the hub, looked at only when it is loaded."""
    families = ("modernbert", "distilbert", "albert", "roberta", "electra", "bert")
    family = next((family for family in families if family in name.lower()), "bert")
    revision = REVISIONS.get(name)
    return ModelRef(title, name, f"{name}@{revision[:12]}" if revision else name, family, revision)


def folder_model(path: Path, title: str | None = None) -> ModelRef:
    """A model in a folder as `save_pretrained` writes it.

    Raises:
        UserError: no folder, no configuration or no safetensors weights in it.
    """
    config, weights = path / "config.json", path / "model.safetensors"
    for needed in (path, config, weights):
        if not needed.exists():
            raise UserError(
                f"no model at {path}: {needed} is missing; give a folder with config.json and model.safetensors"
            )
    try:
        family = json.loads(config.read_text(encoding="utf-8"))["model_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{config} is not a model configuration: {error}") from error
    _check_family(path, family)
    return ModelRef(title or path.resolve().name, str(path), _identity(path), family)


def embedded_model(title: str = "MiniLM-L6") -> ModelRef:
    """The embedded model, known by its weights alone: all else in its package is as pinned as they are.

    Raises:
        UserError: it is not installed, or its weights are not the expected ones.
    """
    folder = embedded.embedded_model_path()
    return replace(folder_model(folder, title), identity=f"sha256:{_sha256(folder / 'model.safetensors')[:16]}")


def _identity(folder: Path) -> str:
    """Of a folder's model: the same where it is saved again unchanged, by whatever version of the library."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    decides = {name: value for name, value in config.items() if name not in ("_name_or_path", "transformers_version")}
    files = {name: _sha256(folder / name) for name in _DECIDING if (folder / name).is_file()}
    return f"sha256:{content_hash([decides, files])}"


def beside_reducer(folder: Path, reducer: TokenReducer, model: ModelRef, *, named: bool) -> ModelRef:
    """Whose tokenizer reads texts for a saved reducer: its own folder's, where there is one, else `model`'s.

    Args:
        named: whether the user chose `model`, so that it may know fewer tokens than the reducer.
    Raises:
        UserError: the folder has no tokenizer, and that of `model` is of another vocabulary.
    """
    vocabulary = reducer.backbone.config.vocab_size
    if (folder / "tokenizer.json").is_file():
        return ModelRef(folder.resolve().name, str(folder), _identity(folder), reducer.backbone.config.model_type)
    known = len(load_tokenizer(model))
    if known > vocabulary or (known < vocabulary and not named):
        raise UserError(
            f"the reducer {folder} has no tokenizer beside it, and that of {model.source} has {known:,} tokens where "
            f"the reducer has {vocabulary:,}; name the model that it was trained from with --model"
        )
    return model


def saved_identity(folder: Path) -> str:
    """What a reducer that `save_pretrained` wrote is: 12 digits of its configuration, options included, and weights."""
    files = (folder / "config.json", *sorted(folder.glob("*.safetensors")))
    return content_hash([_sha256(file) for file in files])


def find_model(name: str) -> ModelRef:
    """The model that `--model` names: a folder if one is there (or the name looks like a path), else a hub name.

    Raises:
        UserError: it looks like a path, and no model is there.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return folder_model(path)
    if path.exists():
        raise UserError(f"{name} is a file; give its folder, with config.json and model.safetensors, as --model")
    parts = name.split("/")
    if name.startswith((".", "/", "~")) or "\\" in name or len(parts) > 2 or (parts[1:] and Path(parts[0]).is_dir()):
        raise UserError(f"there is no folder {name}; check --model")
    if not all(parts):
        raise UserError(f"--model {name!r} is neither a folder nor the name of a model on the hub")
    return hub_model(parts[-1], name)


def check_reachable(ref: ModelRef) -> None:
    """Refuse a hub model that is neither in the cache nor to be had, before libraries try it again and again.

    Raises:
        UserError: nobody answers at the hub.
    """
    import urllib.error
    import urllib.request

    from huggingface_hub import constants, try_to_load_from_cache

    if ref.is_folder or constants.HF_HUB_OFFLINE:
        return
    if isinstance(try_to_load_from_cache(ref.source, "config.json", revision=ref.revision), str):
        return
    try:
        urllib.request.urlopen(constants.ENDPOINT, timeout=HUB_TIMEOUT_S).close()
    except urllib.error.HTTPError:
        return  # it answers
    except OSError as error:
        raise UserError(f"there is no folder {ref.source}, and the hub cannot be reached; check --model") from error


def load_model(ref: ModelRef, task: Task) -> PreTrainedModel:
    """The encoder with a fresh head for `task`; seed torch first, the head is drawn from its generator.

    A head of the same kind that the model brings is kept where it has as many labels; see `replaced_head`. Weights are
    float32 whatever type they are stored in: updates of a training are too small for half precision.

    Raises:
        UserError: the model cannot be had, or is of an unsupported family.
    """
    import safetensors
    import torch
    import transformers

    heads = {
        "span_qa": transformers.AutoModelForQuestionAnswering,
        "token_classification": transformers.AutoModelForTokenClassification,
    }
    loader = heads.get(task.kind, transformers.AutoModelForSequenceClassification)
    settings: dict[str, Any] = {"num_labels": task.num_labels, "dtype": torch.float32}
    if task.kind == "regression":
        settings["problem_type"] = "regression"
    with _quiet_transformers():
        try:
            check_reachable(ref)
            config = transformers.AutoConfig.from_pretrained(ref.source, revision=ref.revision)
            _check_family(ref.source, config.model_type)
            load = partial(loader.from_pretrained, ref.source, revision=ref.revision, use_safetensors=True, **settings)
            state = torch.get_rng_state()
            try:
                return load()
            except RuntimeError:  # shapes: of a head with other labels, or of weights that do not fit
                torch.set_rng_state(state)
                model, told = load(ignore_mismatched_sizes=True, output_loading_info=True)
                body = f"{model.base_model_prefix}."
                if any(name.startswith(body) for name, *_ in told["mismatched_keys"]):
                    raise
                return model
        except (OSError, ValueError, safetensors.SafetensorError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"cannot load the model {ref.source}: {reason}{_CHECK[ref.is_folder]}") from error
        except RuntimeError as error:  # shapes, of which transformers has printed a table
            raise UserError(f"cannot load the model {ref.source}: its weights do not fit its configuration") from error


def replaced_head(ref: ModelRef, task: Task) -> str | None:
    """What to tell of a folder's classifier that `load_model` replaces: it has another number of labels."""
    import transformers

    if not ref.is_folder:
        return None
    with _quiet_transformers():
        config = transformers.AutoConfig.from_pretrained(ref.source)
    kind = "TokenClassification" if task.kind == "token_classification" else "SequenceClassification"
    classifies = task.kind != "span_qa" and any(name.endswith(kind) for name in config.architectures or ())
    if not classifies or config.num_labels == task.num_labels:
        return None
    return (
        f"{ref.title} has a head of {config.num_labels} label(s); {task.title} has {task.num_labels}, so a fresh head "
        "is trained"
    )


def load_tokenizer(ref: ModelRef) -> PreTrainedTokenizerBase:
    """The model's own tokenizer.

    Raises:
        UserError: there is none.
    """
    import transformers

    check_reachable(ref)
    with _quiet_transformers():
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(ref.source, revision=ref.revision)
        except Exception as error:  # the tokenizers library raises nothing more special
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"cannot load the tokenizer of {ref.source}: {reason}{_CHECK[ref.is_folder]}") from error
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # what transformers makes where there are no files
        raise UserError(f"{ref.source} has no tokenizer with words in it; save one beside the model (tokenizer.json)")
    return tokenizer


def _check_family(source: object, family: str) -> None:
    from methods.families import SPECS

    if family not in SPECS:
        raise UserError(f"{source} is a '{family}' model; supported families: {', '.join(SPECS)}")


class _quiet_transformers:
    """No loading bars and no report that the task head is new: it always is."""

    def __enter__(self) -> None:
        from transformers.utils import logging as hf_logging

        self._level = hf_logging.get_verbosity()
        hf_logging.set_verbosity_error()
        hf_logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        from transformers.utils import logging as hf_logging

        hf_logging.set_verbosity(self._level)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
