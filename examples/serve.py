"""A serving loop with dynamic batches, dense against reduced, on a stream of requests: `python examples/serve.py`.

Requests arrive at random times. A worker takes what is waiting, up to a batch, and waits a little for more if there is
room. Texts of different lengths share a batch at no cost, since nothing is padded in packed mode. Without --reducer, an
untrained LAT at a fixed budget is served: its answers mean nothing, its time is that of a trained one.
"""

from __future__ import annotations

import argparse
import queue
import random
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from reviews import quiet, reviews
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import methods
from benchmarks.embedded import embedded_model_path


@dataclass
class Request:
    """A text, when it arrived, and its answer."""

    text: str
    arrived: float = 0.0
    done: threading.Event = field(default_factory=threading.Event)
    answer: int = -1
    latency_ms: float = 0.0


class Server:
    """One worker thread; `submit` may be called from any thread."""

    def __init__(self, classify: Callable[[list[str]], list[int]], *, max_batch: int, max_wait_ms: float) -> None:
        self._classify, self._max_batch, self._max_wait_s = classify, max_batch, max_wait_ms / 1000
        self._waiting: queue.Queue[Request | None] = queue.Queue()
        self.batches: list[int] = []
        self._worker = threading.Thread(target=self._work)

    def __enter__(self) -> Server:
        self._worker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._waiting.put(None)
        self._worker.join()

    def submit(self, text: str) -> Request:
        """Queue a text; wait for `done` of what is returned."""
        request = Request(text, time.perf_counter())
        self._waiting.put(request)
        return request

    def _work(self) -> None:
        while (batch := self._next_batch()) is not None:
            for request, answer in zip(batch, self._classify([request.text for request in batch]), strict=True):
                request.answer, request.latency_ms = answer, 1000 * (time.perf_counter() - request.arrived)
                request.done.set()
            self.batches.append(len(batch))

    def _next_batch(self) -> list[Request] | None:
        """At least one request; None at the end, once all are answered."""
        first = self._waiting.get()
        if first is None:
            return None
        batch, until = [first], time.perf_counter() + self._max_wait_s
        while len(batch) < self._max_batch:
            try:
                request = self._waiting.get(timeout=max(0.0, until - time.perf_counter()))
            except queue.Empty:
                break
            if request is None:
                self._waiting.put(None)
                break
            batch.append(request)
        return batch


def classifier(model: torch.nn.Module, tokenizer) -> Callable[[list[str]], list[int]]:
    """Texts in, class ids out."""

    def classify(texts: list[str]) -> list[int]:
        batch = tokenizer(texts, padding=True, truncation=True, max_length=128, return_tensors="pt")
        with torch.inference_mode():
            return model(**batch).logits.argmax(dim=-1).tolist()

    return classify


def stream(server: Server, texts: list[str], per_second: float, seed: int) -> list[Request]:
    """Send the texts at random times, `per_second` on average, and wait for all answers."""
    rng = random.Random(seed)
    requests = []
    for text in texts:
        time.sleep(rng.expovariate(per_second))
        requests.append(server.submit(text))
    for request in requests:
        request.done.wait()
    return requests


def main() -> None:
    """Serve the same stream with each model in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="pre-trained encoder; default: the embedded one")
    parser.add_argument("--reducer", help="folder of a trained reducer, its tokenizer beside it")
    parser.add_argument("--requests", type=int, default=150)
    parser.add_argument("--per-second", type=float, default=200.0)
    parser.add_argument("--max-batch", type=int, default=32)
    parser.add_argument("--max-wait-ms", type=float, default=5.0)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    quiet()
    name = arguments.model or str(embedded_model_path())
    if arguments.reducer:
        reducer = methods.load(arguments.reducer)
        tokenizer = AutoTokenizer.from_pretrained(arguments.reducer)
    else:
        reducer = methods.create("lat", AutoModelForSequenceClassification.from_pretrained(name, num_labels=2))
        reducer.press(0.2)
        tokenizer = AutoTokenizer.from_pretrained(name)
    models = {
        "stock, padded": reducer.model.eval(),
        "dense, unpadded": methods.create("dense", reducer.model).eval(),
        "reduced": reducer.eval(),
    }
    rng = random.Random(0)
    parts = [text for text, _ in reviews(200)]
    texts = [" and ".join(rng.choices(parts, k=rng.randint(1, 6))) for _ in range(arguments.requests)]
    print(f"{'':16} {'texts/s':>8} {'median ms':>10} {'95th ms':>8} {'mean batch':>11}")
    for title, model in models.items():
        classify = classifier(model, tokenizer)
        classify(texts[:4])  # warm up
        with Server(classify, max_batch=arguments.max_batch, max_wait_ms=arguments.max_wait_ms) as server:
            started = time.perf_counter()
            latencies = sorted(r.latency_ms for r in stream(server, texts, arguments.per_second, seed=1))
            seconds = time.perf_counter() - started
        row = len(texts) / seconds, statistics.median(latencies), latencies[int(0.95 * (len(latencies) - 1))]
        print(f"{title:16} {row[0]:8.1f} {row[1]:10.1f} {row[2]:8.1f} {statistics.mean(server.batches):11.1f}")


if __name__ == "__main__":
    main()
