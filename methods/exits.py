"""What early-exit methods share: a text may leave after a layer with the prediction of that layer's exit."""

from __future__ import annotations

from torch import nn

from methods.families import TOKEN_HEADS

INITIALIZER_STD = 0.02
# Why heads over tokens are refused.
TOKEN_REASONS = dict.fromkeys(TOKEN_HEADS, "an exit yields one prediction for the text, not one for each token")


def exit_classifier(hidden_size: int, num_labels: int) -> nn.Linear:
    """The last layer of an exit, drawn as BERT draws its own; (sequences, hidden_size) -> (sequences, num_labels)."""
    classifier = nn.Linear(hidden_size, num_labels)
    nn.init.normal_(classifier.weight, std=INITIALIZER_STD)
    nn.init.zeros_(classifier.bias)
    return classifier


def exit_macs(hidden_size: int, num_labels: int) -> int:
    """MACs of asking one exit about one text: a pooler and a classifier on [CLS]."""
    return hidden_size * hidden_size + hidden_size * num_labels
