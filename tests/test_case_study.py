"""The case study: what is said of each token, how it is drawn, and the command as a user calls it."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch
import transformers
from rich.console import Console

import methods
from benchmarks.case_study import main
from benchmarks.cli import run_command
from benchmarks.environment import PROJECT_ROOT
from benchmarks.errors import UserError
from benchmarks.models import folder_model, load_model, load_tokenizer
from benchmarks.tasks import TASKS
from benchmarks.token_html import cards, page
from benchmarks.token_terminal import drawn, facts
from benchmarks.token_view import MethodView, Piece, Word, colour, ink, look
from benchmarks.trained import Checkpoint, checkpoints
from tests.cases import CASES
from tests.small_world import WORDS, write_model
from tests.tiny import tiny_model, tiny_reducer

TEXT = "the film was great and the plot was poor"
COUNTS = (6, 4, 2)


def write_reducer(folder, model, name, task="sst2", **options):
    """A reducer for `task` on the tiny model at `model`, with random weights; returns its folder."""
    torch.manual_seed(0)
    methods.create(name, load_model(folder_model(model), TASKS[task]), **options).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Folders: a tiny model, and reducers on it."""
    root = tmp_path_factory.mktemp("case")
    model = write_model(root / "model")
    write_reducer(root / "power", model, "power_bert", retention_configuration=COUNTS)
    write_reducer(root / "transkimmer", model, "transkimmer")
    write_reducer(root / "deebert", model, "deebert", threshold=0.7)
    write_reducer(root / "span", model, "random", "squad_v2", keep_schedule=(1.0, 0.6, 0.4))
    return root


@pytest.fixture(scope="module")
def tokenizer(world):
    return load_tokenizer(folder_model(world / "model"))


def pieces(view):
    return [piece for word in view.words for piece in word.pieces]


# What is said ---------------------------------------------------------------------------------------------------------


def test_every_token_says_which_layer_dropped_it(world, tokenizer) -> None:
    """PoWER-BERT keeps 6, 4, 2 of 11 tokens: 5 fall in layer 1, 2 in layer 2, 2 in layer 3, and [CLS] stays."""
    view = look(methods.load(str(world / "power")), tokenizer, TEXT, source="here")
    left = [piece.left for piece in pieces(view)]
    assert [left.count(layer) for layer in (1, 2, 3, None)] == [11 - 6, 6 - 4, 4 - 2, 2]
    assert left[0] is None and view.shares == pytest.approx([count / 11 for count in COUNTS])
    assert (view.title, view.source, view.layers, view.tokens) == ("PoWER-BERT", "here", 3, 11)
    assert [piece.text for piece in pieces(view)] == ["[CLS]", *TEXT.split(), "[SEP]"]


def test_the_view_is_the_trace(world, tokenizer) -> None:
    reducer = methods.load(str(world / "power")).eval()
    view = look(reducer, tokenizer, TEXT)
    with torch.no_grad():
        output = reducer(**tokenizer(TEXT, return_tensors="pt"))
    computed = [list(piece.computed) for piece in pieces(view)]
    assert computed == output.trace.keep_masks[0].T.tolist()
    dense = reducer.backbone.dense_macs(output.trace.input_lengths)
    assert view.speedup == pytest.approx(float(dense / reducer.macs(output.trace)))
    assert str(round(100 * float(output.logits.softmax(-1).max()))) in view.answer


@pytest.mark.parametrize("name", CASES)
def test_every_method_can_be_looked_at(name, tokenizer) -> None:
    """What is said of tokens is the trace; after an exit nothing is said."""
    reducer = tiny_reducer(name)
    view = look(reducer, tokenizer, TEXT)
    with torch.no_grad():
        trace = reducer(**tokenizer(TEXT, return_tensors="pt")).trace
    ran = int(trace.exit_layers[0]) + 1
    assert [list(piece.computed) for piece in pieces(view)] == trace.keep_masks[0, :ran].T.tolist()
    assert pieces(view)[0].left is None and (view.exit_layer is None) == (not bool(trace.exited[0]))
    assert parsed(page([view], heading="h", command="c")).seen.count("section") == 1 and drawn(view).plain


def test_keeping_everything_drops_nothing(world, tokenizer) -> None:
    view = look(methods.load(str(world / "transkimmer")), tokenizer, TEXT)
    assert {piece.left for piece in pieces(view)} == {None} and view.shares == (1.0, 1.0, 1.0)


def test_a_text_that_leaves(world, tokenizer) -> None:
    """DeeBERT above the largest entropy leaves after layer 1: no token was dropped, no later layer ran."""
    view = look(methods.load(str(world / "deebert")), tokenizer, TEXT)
    assert view.exit_layer == 1 and view.shares == (1.0, 0.0, 0.0)
    assert {piece.computed for piece in pieces(view)} == {(True,)} and {piece.left for piece in pieces(view)} == {None}


def test_a_question_is_read_first_and_answered_from_the_text(world, tokenizer) -> None:
    view = look(methods.load(str(world / "span")), tokenizer, TEXT, "was it great")
    assert [word.part for word in view.words] == [None, 0, 0, 0, None, *[1] * 9, None]
    assert view.answer == "no answer" or view.answer in TEXT
    with pytest.raises(UserError, match="needs a question"):
        look(methods.load(str(world / "span")), tokenizer, TEXT)


def test_a_pair_is_read_in_its_order(world, tokenizer) -> None:
    view = look(methods.load(str(world / "power")), tokenizer, "the film", "it was bad")
    assert [word.pieces[0].text for word in view.words if word.part == 0] == ["the", "film"]


def test_sub_words_are_merged_and_keep_their_spelling(world, tmp_path) -> None:
    """Word pieces of one word stand together, as they were typed; punctuation is a word of its own."""
    model = write_model(tmp_path / "model")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS[:-6], "un", "##watch", "##able", ".", "is", "x"]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary))
    tokenizer = transformers.BertTokenizerFast.from_pretrained(tmp_path, model_max_length=80)
    write_reducer(tmp_path / "power", model, "power_bert", retention_configuration=COUNTS)
    view = look(methods.load(str(tmp_path / "power")), tokenizer, "Unwatchable.")
    assert [[piece.text for piece in word.pieces] for word in view.words] == [
        ["[CLS]"],
        ["Un", "watch", "able"],
        ["."],
        ["[SEP]"],
    ]
    assert "Un\N{MIDDLE DOT}watch" in drawn(view).plain.translate({ord(c): None for c in "₁₂₃"})
    assert '<span class="word"><span class="token"' in cards([view]) and "##" not in cards([view])


def test_a_long_text_is_cut_and_says_so(world, tokenizer) -> None:
    view = look(methods.load(str(world / "power")), tokenizer, "film " * 200)
    assert view.truncated and view.tokens == 80 and "cut" in facts(view).plain
    assert not look(methods.load(str(world / "power")), tokenizer, TEXT).truncated


def test_labels_are_named(world, tokenizer) -> None:
    view = look(methods.load(str(world / "power")), tokenizer, TEXT, labels=("sad", "glad"))
    assert view.answer.split()[0] in ("sad", "glad")


def test_a_tokenizer_of_another_model(world) -> None:
    other = load_tokenizer(folder_model(world / "model"))
    other.add_tokens(["another"])
    with pytest.raises(UserError, match="name the model that it was trained from with --model"):
        look(methods.load(str(world / "power")), other, TEXT, source="here")


def test_left_and_leapt() -> None:
    assert Piece("a", (True, True, True)).left is None and Piece("a", (True, False, False)).left == 2
    assert Piece("a", (False, False)).left == 1 and Piece("a", (False, False)).leapt == ()
    leaping = Piece("a", (True, False, True, False, False))
    assert (leaping.left, leaping.leapt) == (4, (2,))
    assert Piece("a", (False, True)).leapt == (1,)


# How it is drawn ------------------------------------------------------------------------------------------------------


def luminance(value) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in value)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("layers", [3, 6, 12, 24])
def test_colours_darken_with_depth_and_text_stands_out(layers) -> None:
    scale = [colour(layer, layers) for layer in range(1, layers + 1)] + [colour(None, layers)]
    lights = [luminance(value) for value in scale]
    assert lights == sorted(lights, reverse=True) and len(set(scale)) == layers + 1
    for value, light in zip(scale, lights, strict=True):
        high, low = sorted((light, luminance(ink(value))), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 4.5  # WCAG AA


def view_of(text="a", *, title="A", source="s", answer="yes", **changes) -> MethodView:
    words = (Word((Piece("[CLS]", (True, True)),), None), Word((Piece(text, (True, False)),), 0))
    settings = {"shares": (1.0, 0.5), "layers": 2, "exit_layer": None, "speedup": 1.5, "truncated": False} | changes
    return MethodView(title=title, source=source, words=words, answer=answer, **settings)


class Strict(HTMLParser):
    """Collects tags and text; every opened tag has to be closed in order."""

    VOID = ("meta",)

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open, self.seen, self.text, self.attributes = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def parsed(text) -> Strict:
    parser = Strict()
    parser.feed(text)
    parser.close()
    assert not parser.open
    return parser


HOSTILE = "<script>alert('x')</script><img src=x onerror=y>&\"'</span>"


def test_untrusted_texts_are_escaped() -> None:
    views = [view_of(HOSTILE, title=HOSTILE, source=HOSTILE, answer=HOSTILE)]
    document = parsed(page(views, heading=HOSTILE, command=HOSTILE))
    assert "script" not in document.seen and "img" not in document.seen
    assert "".join(document.text).count(HOSTILE) == 7  # title, heading, command, card title, source, answer, token


def test_a_page_is_self_contained() -> None:
    text = page([view_of(), view_of(title="B")], heading="h", command="c")
    document = parsed(text)
    assert not {"script", "link", "img", "iframe"} & set(document.seen)
    assert "http" not in text and "url(" not in text and "@import" not in text
    assert ("lang", "en") in document.attributes and document.seen.count("section") == 2
    assert "color-scheme: light dark" in text


def test_a_card_says_layer_share_and_exit() -> None:
    text = cards([view_of(exit_layer=1, truncated=True)])
    assert 'title="dropped by layer 2"' in text and "<sub>2</sub>" in text and 'title="computed to the end"' in text
    assert "50 %" in text and "1.50x fewer FLOPs" in text and "left after layer 1" in text and "cut" in text
    words = (Word((Piece("a", (True, False, True)),), 0),)
    leaping = replace(view_of(), words=words, layers=3)
    assert "computed to the end; leapt over 2" in cards([leaping])


def test_the_two_texts_of_a_pair_stand_apart(world, tokenizer) -> None:
    view = look(methods.load(str(world / "power")), tokenizer, "the film", "it was bad")
    assert cards([view]).count('<p class="text">') == 2


def test_the_terminal_shows_numbers_without_colour() -> None:
    console = Console(width=80, record=True, color_system=None, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(drawn(view_of("film")))
    assert "[CLS] film₂" in console.export_text()
    assert "computed per layer █▄ 100 50 %" in facts(view_of()).plain


def test_text_that_looks_like_markup_is_printed_as_it_is() -> None:
    assert "[bold]x[/]" in drawn(view_of("[bold]x[/]")).plain


# The command ----------------------------------------------------------------------------------------------------------


def run(world, *arguments, **environment):
    command = [sys.executable, "-m", "benchmarks.case_study", *arguments, "--model", str(world / "model")]
    settings = os.environ | {"SKIMBENCH_HOME": str(world / "home")} | environment
    return subprocess.run(command, cwd=PROJECT_ROOT, env=settings, capture_output=True, text=True, check=False)


def test_several_methods_side_by_side(world, tmp_path) -> None:
    output = tmp_path / "deep" / "page.html"
    folders = [str(world / name) for name in ("power", "transkimmer", "deebert")]
    done = run(world, TEXT, "--reducer", *folders, "--output", str(output))
    assert done.returncode == 0 and done.stderr == ""
    heading = next(line for line in done.stdout.splitlines() if "PoWER-BERT" in line)
    assert "Transkimmer" in heading and "DeeBERT" in heading
    assert f"page: {output}" in done.stdout and parsed(output.read_text(encoding="utf-8")).seen.count("section") == 3


@pytest.fixture
def home(world, tmp_path):
    """A SKIMBENCH_HOME with checkpoints of several tasks, methods and ages."""
    ages = {
        "sst2-power_bert-aaaaaaaaaaaa": 10,
        "sst2-power_bert-bbbbbbbbbbbb": 30,
        "sst2-deebert-cccccccccccc": 20,
        "sst2-dense-dddddddddddd": 40,
        "cola-power_bert-eeeeeeeeeeee": 25,
        "mrpc-power_bert-ffffffffffff": 90,
    }
    for name, age in ages.items():
        folder = tmp_path / "checkpoints" / name
        method = name.split("-")[1]
        options = {"power_bert": {"retention_configuration": COUNTS}}.get(method, {})
        write_reducer(folder, world / "model", method, name.split("-")[0], **options)
        os.utime(folder, (age, age))
    (tmp_path / "checkpoints" / "sst2-transkimmer-0123456789ab").mkdir()  # cut off while it was written
    return tmp_path


def test_the_newest_of_each_method_on_the_newest_task(world, home) -> None:
    model = folder_model(world / "model")

    def names(**options):
        return [checkpoint.folder.name for checkpoint in checkpoints(home, model, **options)]

    assert names(pair=False) == ["sst2-deebert-cccccccccccc", "sst2-power_bert-bbbbbbbbbbbb"]
    assert names(pair=False, task=TASKS["cola"]) == ["cola-power_bert-eeeeeeeeeeee"]
    assert names(pair=True) == ["mrpc-power_bert-ffffffffffff"] and names(pair=True, task=TASKS["sst2"]) == []
    assert isinstance(checkpoints(home, model, pair=True)[0], Checkpoint)


def test_checkpoints_of_another_encoder_are_left_out(home, tmp_path) -> None:
    other = write_model(tmp_path / "other")
    config = (other / "config.json").read_text().replace('"hidden_size": 32', '"hidden_size": 64')
    (other / "config.json").write_text(config)
    assert checkpoints(home, folder_model(other), pair=False) == []


@pytest.mark.parametrize("family", ["distilbert", "albert", "roberta"])
def test_checkpoints_of_every_family_are_found(family, tmp_path) -> None:
    """Families name their sizes differently, and a saved configuration leaves defaults out."""
    tiny_model(family).base_model.save_pretrained(tmp_path / "model")
    tiny_reducer("transkimmer", family).save_pretrained(tmp_path / "checkpoints" / "sst2-transkimmer-aaaaaaaaaaaa")
    (found,) = checkpoints(tmp_path, folder_model(tmp_path / "model"), pair=False)
    assert (found.task, found.method, found.run) == ("sst2", "transkimmer", "aaaaaaaaaaaa")


def test_without_reducers_the_checkpoints_are_taken(world, home, tmp_path) -> None:
    output = tmp_path / "page.html"
    done = run(world, TEXT, "--output", str(output), SKIMBENCH_HOME=str(home))
    assert done.returncode == 0 and "trained on SST-2" in done.stdout
    assert "positive" in done.stdout or "negative" in done.stdout


def test_a_reducer_is_read_to_by_the_tokenizer_beside_it(world, tmp_path, monkeypatch, capsys) -> None:
    """Whatever --model says; without either, a model of another vocabulary is not made to guess."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *reversed(WORDS)]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary))
    own = transformers.BertTokenizerFast.from_pretrained(tmp_path, model_max_length=80)
    folder = write_reducer(tmp_path / "power", world / "model", "power_bert", retention_configuration=COUNTS)
    asked = []
    monkeypatch.setattr("benchmarks.token_view.look", lambda *given, **_: asked.append(given[1]) or view_of())
    arguments = [TEXT, "--reducer", str(folder), "--output", str(tmp_path / "page.html")]
    assert run_command(main, [*arguments, "--model", str(world / "model")]) == 0
    monkeypatch.setattr("benchmarks.embedded.embedded_model_path", lambda: world / "model")
    capsys.readouterr()
    tiny_reducer("transkimmer").save_pretrained(tmp_path / "large")
    assert run_command(main, [TEXT, "--reducer", str(tmp_path / "large")]) == 2
    said = capsys.readouterr().err
    assert (
        f"large has no tokenizer beside it, and that of {world / 'model'} has 19 tokens" in said and "--model" in said
    )
    own.save_pretrained(folder)
    assert run_command(main, arguments) == run_command(main, [*arguments, "--model", str(world / "model")]) == 0
    found = [tokenizer.convert_tokens_to_ids("it") for tokenizer in asked]
    assert found[1:] == [5, 5] and found[0] != 5


BAD = {
    "methods that none was trained of": ([TEXT, "--methods", "lat"], ["no trained reducer for one text"]),
    "methods and reducer": ([TEXT, "--methods", "lat", "--reducer", "{power}"], ["leave it out with --reducer"]),
    "unknown method": ([TEXT, "--methods", "latt"], ["did you mean 'lat'"]),
    "no checkpoints": ([TEXT], ["no trained reducer for one text", "--tasks vader_sentiment", "--reducer"]),
    "no checkpoints of pairs": (
        [TEXT, "x"],
        ["for two texts", "benchmarks.glue --tasks synthetic_pair", "benchmarks.long --tasks synthetic_squad_v2"],
    ),
    "no checkpoints of a task": (
        [TEXT, "--task", "imdb"],
        ["no trained reducer of imdb", "benchmarks.long --tasks imdb"],
    ),
    "no such task": ([TEXT, "--task", "imbd"], ["no task 'imbd'", "did you mean 'imdb'"]),
    "empty text": ([" "], ["the text is empty"]),
    "empty question": ([TEXT, ""], ["the text is empty"]),
    "no such folder": ([TEXT, "--reducer", "./no/such"], ["no reducer at no/such"]),
    "no reducer in it": ([TEXT, "--reducer", "{model}"], ["cannot load the reducer", "not a saved reducer"]),
    "task and reducer": ([TEXT, "--reducer", "{power}", "--task", "sst2"], ["leave it out with --reducer"]),
    "output that cannot be": ([TEXT, "--reducer", "{power}", "--output", "{power}/config.json/x"], ["cannot write"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_end_in_one_sentence(world, case, capsys, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("SKIMBENCH_HOME", str(tmp_path))
    given, parts = BAD[case]
    arguments = [argument.format(power=world / "power", model=world / "model") for argument in given]
    assert run_command(main, [*arguments, "--model", str(world / "model")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and all(part in error for part in parts)
