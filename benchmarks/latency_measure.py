"""One cell of `benchmarks.latency`: all subjects of a batch size, timed in turns, beside their bare matrix products."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch

from benchmarks import latency_subjects
from benchmarks.bare import record
from benchmarks.data import count_texts, load_rows, pad_token_id, tokenize
from benchmarks.environment import version
from benchmarks.latency_peers import PACKAGES, peer_subjects
from benchmarks.latency_subjects import STOCK, UNPADDED, Subject, Texts
from benchmarks.models import load_tokenizer
from benchmarks.progress import RunProgress
from benchmarks.timing import Ratio, Samples, interleave, peak_memory_bytes

if TYPE_CHECKING:
    from benchmarks.latency import Bench

LEAST_TEXTS = 8
BARE = "bare "


def texts_of(bench: Bench, batch_size: int) -> Texts:
    """Random texts of the task's evaluation split, all their windows: two batches, or as many as asked for."""
    count = bench.texts or max(2 * batch_size, LEAST_TEXTS)
    tokenizer = load_tokenizer(bench.tokens)
    rows = load_rows(bench.task, bench.task.eval_splits[0], bench.source, max_samples=count)
    features = tokenize(rows, bench.task, tokenizer, max_length=bench.task.sequence_length)
    return Texts(
        features=features,
        pad_id=pad_token_id(tokenizer),
        batch_size=batch_size,
        sequence_length=bench.task.sequence_length,
        device=bench.device,
    )


def subjects_of(bench: Bench, texts: Texts) -> Iterator[Subject]:
    """Dense ones first."""
    yield from latency_subjects.stock_subjects(bench.model, texts, bench.paddings)
    yield latency_subjects.unpadded_subject(bench.model, texts)
    if bench.peers:
        yield from peer_subjects(bench.peers, bench.model, texts)
    for key, reducer in bench.reducers.items():
        yield latency_subjects.trained_subject(key, reducer, texts)
    for schedule in bench.schedules:
        for name in bench.methods:
            yield latency_subjects.forced_subject(name, bench.model, texts, schedule)


def compute(bench: Bench, texts: Texts, *, quiet: bool) -> dict[str, Any]:
    """The metrics of a record."""
    with torch.inference_mode():
        subjects = list(subjects_of(bench, texts))
        runs: dict[str, Callable[[], object]] = {}
        for subject in subjects:
            runs[subject.key] = subject.run
            if not (bench.times_only or subject.opaque):
                runs[BARE + subject.key] = record(subject.run).replay
        warm_up = 0 if bench.times_only else 1
        if bench.times_only:  # methods ran when their cost was counted
            for subject in subjects:
                if subject.method == "dense":
                    subject.run()
        with RunProgress((bench.rounds + warm_up) * len(runs), quiet=quiet) as progress:
            progress.start_run(f"{len(subjects)} subjects, batch {texts.batch_size}, {bench.rounds} rounds")
            samples = interleave(
                runs,
                rounds=bench.rounds,
                device=bench.device,
                warm_up=warm_up,
                on_pass=lambda name: progress.advance(1),
            )
        peaks = {
            subject.key: peak_memory_bytes(subject.run, bench.device)
            for subject in subjects
            if not (bench.times_only or subject.opaque)
        }
    lengths = texts.lengths
    return {
        "texts": count_texts(texts.features),
        "tokens": int(lengths.sum()),
        "longest": int(lengths.max()),
        "load_average": [round(value, 2) for value in os.getloadavg()],
        **({"peers": _peers(bench)} if bench.peers or bench.absent_peers else {}),
        "subjects": [_described(subject, samples, peaks, subjects) for subject in subjects],
    }


def _described(
    subject: Subject, samples: dict[str, Samples], peaks: dict[str, int], subjects: list[Subject]
) -> dict[str, Any]:
    """A subject's figures, and its ratios to the dense ones."""
    own, bare = samples[subject.key], samples.get(BARE + subject.key)
    against: dict[str, dict[str, Any]] = {}
    for other in subjects:
        if other.key == UNPADDED or other.key.startswith(STOCK):
            theirs, flops = samples[other.key], other.macs / subject.macs
            against[other.padding] = {
                "flops": round(flops, 4),
                "wall": Ratio.of(theirs.wall_s, own.wall_s).as_list(),
                "cpu": Ratio.of(theirs.cpu_s, own.cpu_s).as_list(),
            }
            if bare is not None:
                their_bare = samples[BARE + other.key]
                against[other.padding] |= {
                    "bare_cpu": Ratio.of(their_bare.cpu_s, bare.cpu_s).as_list(),
                    "bare_wall": Ratio.of(their_bare.wall_s, bare.wall_s).as_list(),
                }
    described: dict[str, Any] = {
        "key": subject.key,
        "method": subject.method,
        "title": subject.title,
        "schedule": subject.schedule,
        "padding": subject.padding,
        "shares": subject.shares,
        "macs": subject.macs,
        "wall_s": [round(value, 6) for value in own.wall_s],
        "cpu_s": [round(value, 6) for value in own.cpu_s],
        "against": against,
        "peak_memory_bytes": peaks.get(subject.key),
    }
    if bare is not None:
        described["bare_wall_s"] = [round(value, 6) for value in bare.wall_s]
        described["bare_cpu_s"] = [round(value, 6) for value in bare.cpu_s]
        described["overhead"] = {
            "wall": Ratio.of(own.wall_s, bare.wall_s).as_list(),
            "cpu": Ratio.of(own.cpu_s, bare.cpu_s).as_list(),
        }
    return described


def _peers(bench: Bench) -> dict[str, Any]:
    """Versions of what the peers run in, and why others are absent."""
    return {"versions": {name: version(name) for name in PACKAGES}, "absent": dict(bench.absent_peers)}
