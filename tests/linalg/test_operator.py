import numpy as np
import pytest
import torch
import torch.distributed as dist

from sklearn_kd.kernels import EmpiricalNTK
from sklearn_kd.kernels._array_kernel import ArrayKernel
from sklearn_kd.kernels.infinite._kernel import InfiniteKernel
from sklearn_kd.linalg._operator import (
    DenseOperator,
    RidgeOperator,
    TiledOperator,
    tile_side,
)
from sklearn_kd.linalg._sharded import ShardedOperator

N_ROWS = 300
KERNEL = InfiniteKernel(depth=2)


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def dtype(request):
    return request.param


@pytest.fixture
def X(dtype):
    return torch.as_tensor(np.random.default_rng(0).normal(size=(N_ROWS, 4)), dtype=dtype)


def build(name, X):
    """Return an operator and the matrix it stands for."""
    matrix = KERNEL.gram(X)
    if name == "dense":
        return DenseOperator(matrix), matrix
    if not name.endswith("ridge"):
        operator = TiledOperator if name.startswith("tiled") else ShardedOperator
        share = {"kept": 1, "half kept": 0.5}.get(name.partition(", ")[2], 0)
        kept_bytes = int(0.6 * share * matrix.nbytes)
        return operator(KERNEL, X, kept_bytes=kept_bytes), matrix
    row_ridges = torch.linspace(0, 2, len(X), dtype=X.dtype)
    operator, matrix = build(name.removesuffix(" with ridge"), X)
    return RidgeOperator(operator, row_ridges), matrix + row_ridges.diag()


OPERATORS = ["dense", "tiled", "tiled, half kept", "tiled, kept"]
OPERATORS += ["dense with ridge", "tiled with ridge"]
OPERATORS += ["sharded", "sharded, half kept", "sharded, kept", "sharded with ridge"]


@pytest.fixture(scope="module")
def group_of_one(tmp_path_factory):
    """A process group without other processes; `test_sharded` has more."""
    store = tmp_path_factory.mktemp("group") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("group_of_one")
@pytest.mark.parametrize("name", OPERATORS)
class TestContract:
    @pytest.fixture(autouse=True)
    def _build(self, name, X):
        self.operator, self.matrix = build(name, X)
        self.tolerance = 100 * torch.finfo(X.dtype).eps * self.matrix.max().item()

    def assert_equal(self, actual, expected):
        assert actual.dtype == self.matrix.dtype
        torch.testing.assert_close(actual, expected, rtol=0, atol=self.tolerance)

    def test_shape_dtype_device(self):
        assert self.operator.shape == (N_ROWS, N_ROWS)
        assert self.operator.n_rows == N_ROWS
        assert self.operator.dtype == self.matrix.dtype
        assert self.operator.device == self.matrix.device

    def test_diagonal(self):
        self.assert_equal(self.operator.diag(), self.matrix.diagonal())

    def test_columns(self):
        indices = torch.tensor([299, 0, 130, 130, 127])
        self.assert_equal(self.operator.columns(indices), self.matrix[:, indices])

    def test_block(self):
        rows, columns = torch.tensor([0, 140, 299, 140]), torch.tensor([299, 7, 140])
        self.assert_equal(self.operator.block(rows, columns), self.matrix[rows][:, columns])

    def test_parts_agree_bitwise_on_the_diagonal(self):
        rows = torch.tensor([0, 140, 299])
        diagonal = self.operator.diag()[rows]
        assert torch.equal(self.operator.block(rows, rows).diagonal(), diagonal)
        assert torch.equal(self.operator.columns(rows)[rows, [0, 1, 2]], diagonal)

    @pytest.mark.parametrize("width", [1, 7])
    def test_product(self, width):
        V = torch.as_tensor(np.random.default_rng(1).normal(size=(N_ROWS, width)))
        V = V.to(self.matrix.dtype)
        kept = V.clone()
        torch.testing.assert_close(
            self.operator.matmat(V), self.matrix @ V, rtol=0, atol=20 * self.tolerance
        )
        assert torch.equal(V, kept)

    def test_results_can_be_written_to(self):
        for part in (self.operator.diag, lambda: self.operator.columns(torch.tensor([3, 5]))):
            part().fill_(7)
        self.assert_equal(self.operator.diag(), self.matrix.diagonal())
        self.assert_equal(self.operator.columns(torch.tensor([3])), self.matrix[:, [3]])


@pytest.mark.parametrize("n_rows", [128, 300, 5000])
def test_tiled_product_evaluates_each_pair_of_rows_once(n_rows):
    seen = []

    def function(x, y):
        seen.append((len(x), len(y)))
        return x @ y.T

    X = torch.arange(2.0 * n_rows, dtype=torch.float64).reshape(n_rows, 2) / n_rows
    operator = TiledOperator(ArrayKernel(function), X)
    V = torch.ones(n_rows, 1, dtype=torch.float64)
    seen.clear()
    torch.testing.assert_close(operator.matmat(V), X @ (X.T @ V))
    # a Gram matrix on the diagonal counts as its whole tile at most
    side = tile_side(n_rows, X.device)
    assert sum(n * m for n, m in seen) <= (n_rows**2 + side * n_rows) / 2
    assert max(n * m for n, m in seen) <= side**2


@pytest.mark.parametrize(
    ("n_rows", "side"), [(1, 64), (300, 64), (4096, 512), (5000, 1024), (10**5, 2048)]
)
def test_side_of_the_tiles(n_rows, side):
    assert tile_side(n_rows, torch.device("cpu")) == side
    assert tile_side(n_rows, torch.device("cuda")) == side


def test_what_is_kept_makes_no_difference(X):
    V = torch.as_tensor(np.random.default_rng(1).normal(size=(N_ROWS, 4)), dtype=X.dtype)
    whole = 64 * 64 * X.element_size()
    none, some, most = (TiledOperator(KERNEL, X, kept_bytes=b) for b in (0, 3 * whole, 10**9))
    assert (none.kept_share, most.kept_share) == (0, 1)
    assert 0.1 < some.kept_share < 0.3
    for operator in (some, most):
        assert torch.equal(operator.matmat(V), none.matmat(V))


def test_kernel_with_a_product_of_its_own_is_asked_for_it():
    module = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.ReLU(), torch.nn.Linear(5, 1))
    kernel = EmpiricalNTK(module.double()).to_torch()
    X = torch.linspace(-1, 1, 60, dtype=torch.float64).reshape(20, 3)
    V = torch.eye(20, dtype=torch.float64)[:, :4]
    for kept_bytes in (0, 100, 10**6):  # none of them: a part would have to be computed twice
        operator = TiledOperator(kernel, X, kept_bytes=kept_bytes)
        assert operator.kept_share == (kept_bytes == 10**6)
        torch.testing.assert_close(operator.matmat(V), kernel.gram(X) @ V, rtol=1e-12, atol=1e-12)
