"""Fine-tune a reducer with `Trainer` and serve it with `pipeline`: `python examples/with_trainer.py`."""

from __future__ import annotations

import argparse
import tempfile

import torch
from reviews import quiet, reviews
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments, pipeline

import methods
from benchmarks.embedded import embedded_model_path
from methods import StageCallback


def parameter_groups(reducer: methods.TokenReducer) -> list[dict]:
    """Predictors learn from scratch, so they learn faster than the backbone."""
    predictors = [p for name, p in reducer.named_parameters() if name.startswith("predictors.")]
    backbone = [p for name, p in reducer.named_parameters() if not name.startswith("predictors.")]
    return [{"params": predictors, "lr": 2e-3}, {"params": backbone, "lr": 5e-5}]


def main() -> None:
    """Train, save, load, classify."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="pre-trained encoder; default: the embedded one")
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--epochs", type=int, default=4)
    arguments = parser.parse_args()
    name = arguments.model or str(embedded_model_path())
    torch.manual_seed(0)
    quiet()

    tokenizer = AutoTokenizer.from_pretrained(name)
    labels = {"id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}}
    model = AutoModelForSequenceClassification.from_pretrained(name, num_labels=2, **labels)
    reducer = methods.create("transkimmer", model, skim_weight=0.3, skim_warmup=0.5)
    rows = [{**tokenizer(text), "label": labels["label2id"][label]} for text, label in reviews(arguments.rows)]
    cut = len(rows) // 5

    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            folder,
            num_train_epochs=arguments.epochs,
            per_device_train_batch_size=16,
            report_to="none",
            save_strategy="no",
            logging_steps=20,
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        trainer = Trainer(
            reducer,
            settings,
            train_dataset=rows[cut:],
            eval_dataset=rows[:cut],
            processing_class=tokenizer,
            callbacks=[StageCallback()],
            optimizers=(torch.optim.AdamW(parameter_groups(reducer)), None),
        )
        trainer.train()
        print(trainer.evaluate())
        trainer.save_model(folder)

        classify = pipeline("text-classification", model=folder)  # eval(): tokens are really removed
        texts = ["on the whole the plot is charming", "once again this story is tedious"]
        print(classify(texts, batch_size=2))
        trace = classify.model(**tokenizer(texts, padding=True, return_tensors="pt")).trace
        print("tokens that each layer computed:", trace.ffn_tokens.tolist(), "of", trace.input_lengths.tolist())


if __name__ == "__main__":
    main()
