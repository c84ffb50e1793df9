"""Products with a kernel matrix whose tiles are dealt out to the processes of torch.distributed.

Θ is symmetric, so the tiles on and above its diagonal suffice. They are dealt out like cards. Each
of P processes holds, or evaluates, one P-th of n²/2 entries, whatever n and P (blocks of rows would
take twice that). A product sends V from process 0 to all processes, and adds up their parts without
rounding. The result equals that of `TiledOperator` in one process to the last bit, wherever that
works by tiles. Some kernels have a product of their own, such as EmpiricalNTK. A single process
that does not keep all tiles uses it; several processes use tiles. The results agree to rounding.

Only products are shared. Process 0 runs the solver, and the others answer it until it is done
(`drive`). So no two processes can decide differently because of rounding, and all of them end with
the same result, or the same error.

The same code works with gloo on CPUs and NCCL on GPUs. If a process is lost, the collective
operation that waits for it fails, after the timeout of the process group at the latest.
"""

from __future__ import annotations

import platform
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from sklearn_kd.linalg._operator import TiledOperator, tile_side, upper_parts

Result = TypeVar("Result")

# Relative difference between the processes' targets that rounding may explain.
_SAME_TARGETS = 1e-6


class ShardedOperator(TiledOperator):
    """K(X, X), of which each process of the group contributes its share of the tiles.

    Diagonal, blocks and columns are evaluated by the process that asks for them. Products are for
    process 0 alone, within `drive`, and always by tiles.

    Parameters
    ----------
    kernel : KernelFunction
    X : Tensor of shape (n, d)
        All rows, in every process.
    kept_bytes : int, default=0
        Bytes of its tiles that each process keeps.
    """

    number = 0  # among the operators of `drive`

    def _own_parts(self) -> list[tuple[slice, slice]]:
        return shares(self.n_rows, self.device, dist.get_world_size())[dist.get_rank()]

    def matmat(self, V: Tensor) -> Tensor:
        """Return the product with ``V`` of shape (n, k), shape (n, k)."""
        _announce(self.number, V.shape[1], self.device)
        return self.take_part(V.contiguous())

    def take_part(self, V: Tensor) -> Tensor:
        """Take part in a product; ``V`` (n, k), contiguous, is filled except in process 0."""
        with _lost_process_is_named():
            dist.broadcast(V, src=0)
        total = self.sum_of_tiles(V)
        with _lost_process_is_named():
            dist.reduce(total.parts, dst=0)
        return total.value().to(V.dtype)


def shares(n_rows: int, device: torch.device, n_shares: int) -> list[list[tuple[slice, slice]]]:
    """Return the tiles of each process, equally many but for one."""
    tiles = list(upper_parts(n_rows, tile_side(n_rows, device)))
    return [tiles[share::n_shares] for share in range(n_shares)]


def largest_share(n_rows: int, device: torch.device, n_shares: int) -> int:
    """Return how many entries the tiles of any process hold at most, without listing them."""
    side = tile_side(n_rows, device)
    n_whole, rest = divmod(n_rows, side)
    n_parts = n_whole + (rest > 0)
    all_entries = (n_rows**2 + n_whole * side**2 + rest**2) // 2
    n_tiles = -(-n_parts * (n_parts + 1) // 2 // n_shares)
    return min(n_tiles * side**2, all_entries)


def drive(operators: Sequence[ShardedOperator], solve: Callable[[], Result]) -> Result:
    """Return what ``solve`` returns in process 0, in all processes, which share its products.

    Parameters
    ----------
    operators : sequence of ShardedOperator
        The operators whose products ``solve`` uses, in the same order in all processes.
    solve : callable
        Called in process 0. Its result is pickled, so it must hold no tensors of a GPU.

    Raises
    ------
    Exception
        The exception that ``solve`` raised, in all processes.
    RuntimeError
        If a process of the group is lost.
    """
    for number, operator in enumerate(operators):
        operator.number = number
    device = operators[0].device
    outcome: list[Any] = [None, None]  # the result, or the exception
    if dist.get_rank() == 0:
        try:
            outcome[0] = solve()
        except LostProcessError:
            raise
        except BaseException as error:
            outcome[1] = error
        _announce(_DONE, 0, device)
    else:
        _serve(operators, device)
    with _lost_process_is_named():
        dist.broadcast_object_list(outcome, src=0, device=device)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


_DONE = -1  # instead of the number of an operator


def _announce(number: int, width: int, device: torch.device) -> None:
    with _lost_process_is_named():
        dist.broadcast(torch.tensor([number, width], device=device), src=0)


def _serve(operators: Sequence[ShardedOperator], device: torch.device) -> None:
    """Take part in products until process 0 is done."""
    while True:
        header = torch.zeros(2, dtype=torch.int64, device=device)
        with _lost_process_is_named():
            dist.broadcast(header, src=0)
        number, width = header.tolist()
        if number == _DONE:
            return
        operator = operators[number]
        operator.take_part(operator.X.new_empty((operator.n_rows, width)))


class LostProcessError(RuntimeError):
    """A process of the group no longer answers."""


@contextmanager
def _lost_process_is_named() -> Iterator[None]:
    """Explain the failure of a collective operation."""
    try:
        yield
    except RuntimeError as error:
        raise LostProcessError(
            f"Process {dist.get_rank()} of {dist.get_world_size()} waited in vain for another "
            "one, which ended, failed, or took longer than the timeout given to "
            f"init_process_group; start all of them again. ({error})"
        ) from error


def require_group(device: torch.device) -> None:
    """Raise `ValueError` unless there is a process group that works on ``device``."""
    if not (dist.is_available() and dist.is_initialized()):
        raise ValueError(
            "distributed=True needs a process group: call torch.distributed.init_process_group() "
            "first, and start the script with torchrun."
        )
    if dist.get_backend() == "nccl" and device.type != "cuda":
        raise ValueError(
            f"The process group's backend is 'nccl', but device={str(device)!r}; use "
            "device='cuda', or init_process_group('gloo')."
        )


def processes_of_this_machine(device: torch.device) -> int:
    """Return how many processes of the group share this machine's memory."""
    own = zlib.crc32(platform.node().encode())
    names = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(dist.get_world_size())]
    with _lost_process_is_named():
        dist.all_gather(names, torch.tensor([own], device=device))
    return sum(int(name.item() == own) for name in names)


def smallest_of_all(value: int, device: torch.device) -> int:
    """Return the smallest ``value`` of any process."""
    tensor = torch.tensor(value, device=device)
    with _lost_process_is_named():
        dist.all_reduce(tensor, op=dist.ReduceOp.MIN)
    return int(tensor.item())


def require_same_problem(X: Tensor, targets: Tensor) -> Tensor:
    """Return process 0's targets; raise `ValueError` in all processes if theirs differ.

    Parameters
    ----------
    X : Tensor of shape (n, d)
    targets : Tensor of shape (n, m)
    """
    checksum = zlib.crc32(X.detach().cpu().contiguous().numpy().data)
    own = torch.tensor([*X.shape, targets.shape[1], checksum], device=X.device)
    first = own.clone()
    with _lost_process_is_named():
        dist.broadcast(first, src=0)
    if smallest_of_all(int(torch.equal(own, first)), X.device) == 0:
        raise ValueError(
            "distributed=True needs the same rows and classes in every process, but some process "
            "was given others. Load the data in the same way everywhere."
        )
    shared = targets.contiguous().clone()
    with _lost_process_is_named():
        dist.broadcast(shared, src=0)
    is_same = (targets - shared).abs().max() <= _SAME_TARGETS * shared.abs().max()
    if smallest_of_all(int(is_same), X.device) == 0:
        raise ValueError(
            "distributed=True: the effective logits differ between the processes, so their "
            "teachers, labels or soft_ratio do. Give a teacher that draws random numbers a "
            "random_state, or pass teacher_logits."
        )
    return shared
