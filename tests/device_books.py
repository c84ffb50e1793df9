"""What a pretended GPU was asked to do: launches, waits, transfers, bytes, and a model of the time.

The model is an H100 as one stream. The host spends `LAUNCH_SECONDS` on every launch and goes on. A
kernel starts when it has been launched and the one before has ended, and takes what its bytes or
its operations take. A wait brings the host to the end of the stream. Times rank designs, no more.
"""

import math
import sys
import weakref
from collections import Counter
from dataclasses import dataclass, field

import torch

BYTES_PER_SECOND = 2.8e12
# cuBLAS on an H100 SXM, at large sizes; float32 without TF32.
OPERATIONS_PER_SECOND = {torch.float64: 5.0e13, torch.float32: 4.5e13}
LAUNCH_SECONDS = 6e-6
SHORTEST_KERNEL_SECONDS = 2.5e-6
TRANSFER_BYTES_PER_SECOND = 1.2e10  # pageable memory
WAIT_SECONDS = 1e-5

PRODUCTS = {"mm": 0, "bmm": 0, "addmm": 1, "addmm_": 1, "baddbmm": 1, "baddbmm_": 1}


@dataclass
class Counts:
    """What one line of the package, or all of it, asked for."""

    launches: int = 0
    waits: int = 0
    to_gpu: int = 0
    to_cpu: int = 0
    bytes_to_gpu: int = 0
    bytes_to_cpu: int = 0
    product_seconds: float = 0.0  # of matrix products and factorizations
    other_seconds: float = 0.0


@dataclass
class Books:
    """The account of a device of ``total_bytes``, by lines of the package named ``package``."""

    total_bytes: int = 80 * 2**30
    package: str = "sklearn_kd"
    total: Counts = field(default_factory=Counts)
    lines: dict[str, Counts] = field(default_factory=dict)
    operations: Counter = field(default_factory=Counter)
    wait_causes: Counter = field(default_factory=Counter)
    allocated: int = 0
    peak: int = 0
    reserved: int = 0  # what the caching allocator of torch would hold
    _host: float = 0.0
    _device: float = 0.0

    @property
    def seconds(self) -> float:
        """Time so far, by the model."""
        return max(self._host, self._device)

    def launch(self, name, tensors, operations=0.0, dtype=None):
        """Enter a kernel that touches ``tensors``."""
        distinct = {(t.untyped_storage()._cdata, t.shape): touched_bytes(t) for t in tensors}
        by_bytes = sum(distinct.values()) / BYTES_PER_SECOND
        by_operations = operations / OPERATIONS_PER_SECOND.get(dtype, 4.5e13)
        seconds = max(by_bytes, by_operations, SHORTEST_KERNEL_SECONDS)
        self.operations[name] += 1
        self._host += LAUNCH_SECONDS
        self._device = max(self._device, self._host) + seconds
        for counts in self._counts():
            counts.launches += 1
            if operations:
                counts.product_seconds += seconds
            else:
                counts.other_seconds += seconds

    def wait(self, cause):
        """Enter a wait of the host for the device."""
        self._host = max(self._host, self._device) + WAIT_SECONDS
        self.wait_causes[cause] += 1
        for counts in self._counts():
            counts.waits += 1

    def transfer(self, tensor, to_gpu):
        """Enter a copy between host and device, for which the host waits."""
        n_bytes = tensor.nbytes
        self._device = max(self._device, self._host) + n_bytes / TRANSFER_BYTES_PER_SECOND
        for counts in self._counts():
            counts.to_gpu += to_gpu
            counts.to_cpu += not to_gpu
            counts.bytes_to_gpu += to_gpu * n_bytes
            counts.bytes_to_cpu += (not to_gpu) * n_bytes
        self.wait("copy to the GPU" if to_gpu else "copy to the CPU")

    def allocate(self, storage):
        """Enter a storage that lives on the device until it is freed."""
        n_bytes = storage.nbytes()
        if self.allocated + n_bytes > self.total_bytes:
            raise torch.OutOfMemoryError(
                f"CUDA out of memory. Tried to allocate {n_bytes} bytes; {self.allocated} of "
                f"{self.total_bytes} are in use."
            )
        self.allocated += n_bytes
        self.peak = max(self.peak, self.allocated)
        self.reserved = max(self.reserved, self.allocated)
        weakref.finalize(storage, self._free, n_bytes)

    def _free(self, n_bytes):
        self.allocated -= n_bytes

    def forget(self):
        """Forget all that was asked so far."""
        self.total, self.lines = Counts(), {}
        self.operations.clear()
        self.wait_causes.clear()
        self._host = self._device = 0.0

    def reset_peak(self):
        """Forget the peak so far."""
        self.peak = self.allocated

    def _counts(self):
        """Return the counts of all, and of the line of the package that is being executed."""
        frame, folder, where = sys._getframe(2), f"/{self.package}/", "elsewhere"
        while frame is not None:
            path = frame.f_code.co_filename
            if folder in path and "/tests/" not in path:
                where = f"{path.rsplit(folder, 1)[-1]}:{frame.f_lineno}"
                break
            frame = frame.f_back
        return self.total, self.lines.setdefault(where, Counts())

    def summary(self, n_lines=12):
        """Return the totals, and the lines that waited and launched most, as text."""
        t = self.total
        rows = [
            f"{t.launches} launches, {t.waits} waits {dict(self.wait_causes.most_common())}, "
            f"{t.bytes_to_gpu} bytes to the GPU in {t.to_gpu}, {t.bytes_to_cpu} back in "
            f"{t.to_cpu}, peak {self.peak} bytes; modelled {self.seconds:.4f} s, products "
            f"{t.product_seconds:.4f} s, other kernels {t.other_seconds:.4f} s"
        ]
        most = sorted(self.lines.items(), key=lambda line: -line[1].launches - 5 * line[1].waits)
        for where, counts in most[:n_lines]:
            rows.append(
                f"{where:>48} {counts.launches:7} launches {counts.waits:6} waits "
                f"{1e3 * (counts.product_seconds + counts.other_seconds):9.3f} ms"
            )
        return "\n".join(rows)


def touched_bytes(tensor):
    """Return the bytes of what a tensor views, each entry once."""
    sides = zip(tensor.shape, tensor.stride(), strict=True)
    return math.prod(n for n, stride in sides if stride) * tensor.element_size()


def operations_of(name, arguments, outputs):
    """Return the floating-point operations of products and factorizations; 0 of all else."""
    if not outputs or not arguments:
        return 0.0
    size = float(outputs[0].numel())
    if name in PRODUCTS:
        return 2 * size * arguments[PRODUCTS[name]].shape[-1]
    side = arguments[0].shape[-1] if getattr(arguments[0], "ndim", 0) else 1
    return {
        "linalg_solve_triangular": size * side,
        "linalg_cholesky_ex": size * side / 3,
        "linalg_qr": 4 * size * side,
        "_linalg_eigh": 20 * size * side,
        "_linalg_svd": 20 * size * side,
    }.get(name, 0.0)
