"""One run on several processes: `accelerate launch --num_processes N -m benchmarks.glue ...`, or `torchrun`.

The first process leads: it runs the command as it would alone, and tells the others, its helpers, of every stage that
it trains. Of each batch, every process computes its share of the rows; the gradients become those of the whole batch on
all of them, so that their weights stay equal. Scores, records and checkpoints are the leader's alone.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import nn

Row = TypeVar("Row")
_PATIENCE = datetime.timedelta(days=7)  # helpers wait while the leader scores, searches or reads records


class PeerFailed(RuntimeError):
    """Another process of the run met an error, which its own output has."""

    def __init__(self) -> None:
        super().__init__("another process of this run failed, see its output")


class Team:
    """The processes of a command; alone, every method does next to nothing.

    Attributes:
        rank: this process's number; the leader's is 0. size: how many they are.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size
        self._is_expected = False  # the others will wait for this process in their next update

    @property
    def leads(self) -> bool:
        """Whether this process is the leader, or alone."""
        return self.rank == 0

    def share(self, rows: Sequence[Row]) -> list[Row]:
        """This process's rows of a batch."""
        return list(rows[self.rank :: self.size])

    def orders(self) -> Iterator[Any]:
        """For a helper: what the leader tells, until it dismisses the team."""
        while (order := self._hear()) is not None:
            yield order

    def dismiss(self) -> None:
        """For the leader: let the helpers end."""
        if self.size > 1:
            self._hear(None)

    @contextlib.contextmanager
    def engaged(self, order: Any = None) -> Iterator[None]:
        """Train a stage with all others; the leader tells them its order. An error here ends the stage everywhere."""
        if self.size > 1:
            if self.leads:
                self._hear(order)
            self._is_expected = True
        try:
            yield
        except Exception:
            if self._is_expected:
                self._any_failed(True)
            raise

    def finish(self) -> None:
        """Say, on all processes, that the stage has had its last update."""
        self._is_expected = False

    @contextlib.contextmanager
    def averaging(self, parameters: Sequence[nn.Parameter], weight: float) -> Iterator[None]:
        """Gradients made in the block become the sum, over the processes, of `weight` times theirs.

        Args:
            weight: this process's share of the batch.
        Raises:
            PeerFailed: the block raised an error in another process.
        """
        if self.size == 1:
            yield
            return
        yield
        if self._any_failed(False):
            raise PeerFailed
        _sum_gradients(parameters, weight)

    def _any_failed(self, failed: bool) -> bool:
        import torch

        flag = torch.tensor(int(failed))
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
        if flag:
            self._is_expected = False
        return bool(flag)

    def _hear(self, order: Any = None) -> Any:
        import torch

        said = [order]
        torch.distributed.broadcast_object_list(said, src=0, device=torch.device("cpu"))
        return said[0]


_team = Team()


def current() -> Team:
    """The team of this process."""
    return _team


@contextlib.contextmanager
def joined() -> Iterator[Team]:
    """Join the processes that a launcher has started with this one, if it has."""
    global _team
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1:
        yield _team
        return
    import torch
    import torch.distributed.nn  # before the group exists: its functions keep the default group of their import alive

    rank, on_gpu = int(os.environ["RANK"]), torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    if rank:
        logging.getLogger().setLevel(logging.ERROR)  # the leader has said it
    torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=_PATIENCE)
    _team = Team(rank, size)
    try:
        yield _team
        if _team.leads:
            _team.dismiss()
    except Exception:
        if _team.leads:
            _team.dismiss()
        raise
    finally:
        _team = Team()
        # Joins the group's threads if nobody keeps it; one that lets go of a tensor as the interpreter ends aborts it.
        torch.distributed.destroy_process_group()


def _sum_gradients(parameters: Sequence[nn.Parameter], weight: float) -> None:
    """A parameter that no process has a gradient of keeps none."""
    import torch

    present = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.uint8)
    torch.distributed.all_reduce(present, torch.distributed.ReduceOp.MAX)
    touched = [parameter for parameter, has in zip(parameters, present.tolist(), strict=True) if has]
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad.mul_(weight) for p in touched]
    if not gradients:
        return
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    torch.distributed.all_reduce(flat)
    for parameter, part in zip(touched, flat.split([p.numel() for p in touched]), strict=True):
        parameter.grad = part.view_as(parameter)
