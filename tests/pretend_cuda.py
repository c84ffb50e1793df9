"""A CUDA device that is not there: CPU tensors, watched and counted as if they were on a GPU.

    with PretendCuda() as gpu:
        student = LinearizedKDStudent(device="cuda").fit(X, y, teacher_logits=z)
    print(gpu.summary())

A tensor "on the GPU" is a CPU tensor whose storage is marked. Every operation passes through a
`TorchDispatchMode`, which marks what comes of marked tensors; so marks follow views, autograd,
`vmap` and threads, and results are those of the CPU, bit for bit. What CUDA refuses is refused with
torch's own words: operations on both devices, `numpy()` without `cpu()`, CPU generators, pickles
that are read where there is no GPU, more memory than there is, `cumsum` where determinism is asked
for, and gradients of cuDNN's recurrent layers in evaluation mode. `device_books` counts the rest.

It cannot see: kernels that CUDA does not have or that round otherwise, limits and workspaces of
cuBLAS and cuSOLVER, fragmented memory, errors that come later, several streams or GPUs, worker
processes, and C++ code that asks where a tensor is. Modules imported while it is entered keep its
factories, so import first.
"""

import contextlib
import functools
import sys
import threading
import types

import torch
from device_books import Books, operations_of
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GPU = torch.device("cuda", 0)

# Functions that make a tensor of a shape, and of data; and methods that do.
# fmt: off
OF_SHAPES = (
    "arange", "empty", "empty_like", "empty_permuted", "empty_strided", "eye", "full", "full_like",
    "linspace", "logspace", "normal", "ones", "ones_like", "rand", "rand_like", "randint",
    "randint_like", "randn", "randn_like", "randperm", "scalar_tensor", "tril_indices",
    "triu_indices", "zeros", "zeros_like",
)
# fmt: on
OF_DATA = ("as_tensor", "asarray", "tensor")
METHODS_OF_SHAPES = ("new_empty", "new_empty_strided", "new_full", "new_ones", "new_zeros")

INDEXING = {"index", "_unsafe_index", "index_put", "index_put_", "_index_put_impl_"}
TAKE_CPU_SCALARS = {"where", "masked_fill", "masked_fill_", "fill_", "index_fill", "index_fill_"}
NOT_DETERMINISTIC = {"cumsum", "cumsum_", "histc", "kthvalue"}
# The host knows the values, or the shape, of what these return.
# fmt: off
WAITING = {
    "_linalg_check_errors", "_linalg_eigh", "_linalg_svd", "_local_scalar_dense", "_unique2",
    "bincount", "equal", "linalg_eig", "linalg_lstsq", "masked_select", "nonzero",
    "unique_consecutive", "unique_dim",
}
# fmt: on

_active = []  # the device that is entered, if any


def active():
    """Return the device that is entered."""
    return _active[0]


def on_gpu(tensor):
    """Whether a tensor pretends to be on the GPU."""
    with torch._C.DisableTorchFunction():
        while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            tensor = torch._C._functorch.get_unwrapped(tensor)
        try:
            return hasattr(tensor.untyped_storage(), "_pretends")
        except (NotImplementedError, RuntimeError):  # sparse tensors have no storage
            return False


def tensors_in(tree):
    """Return the tensors of nested arguments."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


class PretendCuda(Books):
    """The device. While it is entered, ``device="cuda"`` exists in all threads."""

    def __enter__(self):
        if _active:
            raise RuntimeError("one pretended GPU at a time")
        _active.append(self)
        self._local = threading.local()
        self._undo = contextlib.ExitStack()
        self._patch_factories()
        for name, value in self._tensor_members().items():
            self._patch(Tensor, name, value)
        for name, value in self._cuda_functions().items():
            self._patch(torch.cuda, name, value)
        self._patch(torch.backends.cuda, "is_built", lambda: True)
        for name in ("gru", "lstm", "rnn_relu", "rnn_tanh"):
            self._patch(torch._VF, name, recurrent(getattr(torch._VF, name)))
        self._patch(threading.Thread, "run", self._watched(threading.Thread.run))
        self._undo.enter_context(self._watching())
        return self

    def __exit__(self, *exception):
        self._undo.close()
        _active.clear()

    @contextlib.contextmanager
    def _watching(self):
        with Operations(self), Calls(self):
            yield

    def _watched(self, run):
        def watched_run(thread):
            with self._watching():
                run(thread)

        return watched_run

    def _patch(self, owner, name, value):
        nothing = object()
        before = vars(owner).get(name, nothing)
        setattr(owner, name, value)
        if before is nothing:
            self._undo.callback(delattr, owner, name)
        else:
            self._undo.callback(setattr, owner, name, before)

    # Where new tensors are.

    @property
    def place(self):
        """Whether everything made meanwhile is on the GPU; None where its inputs decide."""
        return getattr(self._local, "place", None)

    @property
    def was_called_on_gpu(self):
        """Whether the torch function that Python called got a tensor on the GPU."""
        return getattr(self._local, "was_called_on_gpu", False)

    @contextlib.contextmanager
    def placing(self, gpu):
        """Put everything that is made meanwhile on one device."""
        before, self._local.place = self.place, gpu
        try:
            yield
        finally:
            self._local.place = before

    def is_gpu(self, device):
        """Whether a device, as torch takes it, is this one."""
        device = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
        if device.type == "cuda" and (device.index or 0) > 0:
            raise RuntimeError("CUDA error: invalid device ordinal")
        return device.type == "cuda"

    def mark(self, tensor):
        """Let the storage of a tensor be on the GPU from now on."""
        storage = tensor.untyped_storage()
        if not hasattr(storage, "_pretends"):
            self.allocate(storage)
            storage._pretends = True

    def _patch_factories(self):
        makers = {getattr(torch, name): self._of_shape(getattr(torch, name)) for name in OF_SHAPES}
        makers |= {getattr(torch, name): self._of_data(getattr(torch, name)) for name in OF_DATA}
        modules = [m for m in list(sys.modules.values()) if isinstance(m, types.ModuleType)]
        for module in modules:  # under every name that a module has imported them by
            for name, value in list(vars(module).items()):
                if type(value) is types.BuiltinFunctionType and value in makers:
                    self._patch(module, name, makers[value])

    def _of_shape(self, original):
        @functools.wraps(original)
        def make(*args, **kwargs):
            device = kwargs.get("device")
            if device is None:
                with self.placing(self.place if tensors_in(args) else False):
                    return original(*args, **kwargs)
            gpu = self.is_gpu(device)
            if gpu and kwargs.get("generator") is not None:
                raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
            with self.placing(gpu):
                return original(*args, **kwargs | {"device": "cpu"})

        return make

    def _of_data(self, original):
        @functools.wraps(original)
        def make(data, *args, device=None, **kwargs):
            if device is None:
                return original(data, *args, **kwargs)
            with self.placing(None if isinstance(data, Tensor) else False):
                made = original(data, *args, **kwargs)
            return made.to(device)

        return make

    # What tensors are asked.

    def _tensor_members(self):
        original = {name: getattr(Tensor, name) for name in ("new_tensor", "to", "tolist")}
        device = Tensor.device

        def new_tensor(tensor, data, *, device=None, **kwargs):
            with self.placing(False):
                made = original["new_tensor"](tensor, data, **kwargs)
            return made.to(tensor.device if device is None else device)

        members = {
            "device": property(lambda t: GPU if on_gpu(t) else device.__get__(t)),
            "is_cuda": property(on_gpu),
            "is_cpu": property(lambda t: not on_gpu(t)),
            "get_device": lambda t: 0 if on_gpu(t) else -1,
            "to": self._to(original["to"]),
            "cpu": lambda t, memory_format=torch.preserve_format: t.to("cpu"),
            "cuda": lambda t, device=None, non_blocking=False: t.to("cuda"),
            "tolist": lambda t: original["tolist"](t.cpu() if on_gpu(t) else t),
            "new_tensor": new_tensor,
            "numpy": numpy_of_host(Tensor.numpy),
            "__array__": of_host(Tensor.__array__, not_on_host),
            "pin_memory": of_host(Tensor.pin_memory, not_pinnable),
            "__dlpack__": dlpack_of_host(Tensor.__dlpack__),
            "__deepcopy__": self._deepcopy(Tensor.__deepcopy__),
            "__reduce_ex__": reduced(Tensor.__reduce_ex__),
        }
        return members | {name: self._of_shape(getattr(Tensor, name)) for name in METHODS_OF_SHAPES}

    def _to(self, original):
        @functools.wraps(original)
        def to(tensor, *args, copy=False, **kwargs):
            other = args[0] if args else kwargs.get("other")
            if isinstance(other, Tensor):
                gpu, dtype, layout = on_gpu(other), other.dtype, None
            else:
                device, dtype, _, layout = torch._C._nn._parse_to(*args, **kwargs)
                gpu = on_gpu(tensor) if device is None else self.is_gpu(device)
            options = {"memory_format": layout or torch.preserve_format}
            options |= {} if dtype is None else {"dtype": dtype}
            if gpu == on_gpu(tensor):
                return original(tensor, copy=copy, **options)
            tensor = original(tensor, **options)
            self.transfer(tensor, gpu)
            with self.placing(gpu):
                return tensor.clone(memory_format=options["memory_format"])

        return to

    def _deepcopy(self, original):
        @functools.wraps(original)
        def deepcopy(tensor, memo):
            copied = original(tensor, memo)
            if on_gpu(tensor) and not on_gpu(copied):
                self.mark(copied)
                self.launch("deepcopy", [tensor, copied])
            return copied

        return deepcopy

    def _cuda_functions(self):
        properties = types.SimpleNamespace(
            name="pretended", total_memory=self.total_bytes, multi_processor_count=132, major=9
        )
        answers = {
            "is_available": True,
            "is_initialized": True,
            "_lazy_init": None,
            "init": None,
            "device_count": 1,
            "current_device": 0,
            "_exchange_device": 0,
            "_maybe_exchange_device": 0,
            "set_device": None,
            "get_device_name": "pretended",
            "get_device_capability": (9, 0),
            "get_device_properties": properties,
            "set_rng_state": None,
            "manual_seed": None,
            "manual_seed_all": None,
        }
        functions = {
            name: lambda *args, value=value, **kwargs: value for name, value in answers.items()
        }
        return functions | {
            "mem_get_info": lambda device=None: (
                self.total_bytes - self.reserved,
                self.total_bytes,
            ),
            "memory_allocated": lambda device=None: self.allocated,
            "memory_reserved": lambda device=None: self.reserved,
            "max_memory_allocated": lambda device=None: self.peak,
            "reset_peak_memory_stats": lambda device=None: self.reset_peak(),
            "empty_cache": lambda: setattr(self, "reserved", self.allocated),
            "synchronize": lambda device=None: self.wait("synchronize"),
            "get_rng_state": lambda device=None: torch.zeros(16, dtype=torch.uint8),
        }


class Calls(TorchFunctionMode):
    """Sees the torch functions that Python calls: what these make is where their inputs are."""

    def __init__(self, gpu):
        super().__init__()
        self.gpu = gpu

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        local, before = self.gpu._local, self.gpu.was_called_on_gpu
        local.was_called_on_gpu = any(map(on_gpu, tensors_in((args, kwargs))))
        try:
            return func(*args, **kwargs)
        finally:
            local.was_called_on_gpu = before


class Operations(TorchDispatchMode):
    """Sees every operation of a thread, below autograd and `vmap`."""

    def __init__(self, gpu):
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, gpu = kwargs or {}, self.gpu
        inputs = tensors_in((args, kwargs))
        is_marked = any(map(on_gpu, inputs))
        is_on_gpu = gpu.place
        name = func._overloadpacket.__name__
        if is_on_gpu is None:
            is_on_gpu = is_marked if inputs else gpu.was_called_on_gpu
            if is_on_gpu:
                self._refuse(func, name, args, kwargs, inputs)
        result = func(*args, **kwargs)
        if not (is_on_gpu or is_marked):
            return result
        known = {tensor.untyped_storage()._cdata for tensor in inputs}
        outputs = tensors_in(result)
        new = [tensor for tensor in outputs if tensor.untyped_storage()._cdata not in known]
        if is_on_gpu:
            for tensor in new:
                gpu.mark(tensor)
        is_kernel = (new or func._schema.is_mutable or name in WAITING) and "empty" not in name
        if is_kernel and any(map(on_gpu, (*inputs, *outputs))):
            dtype = outputs[0].dtype if outputs else None
            operations = operations_of(name, args, outputs)
            gpu.launch(str(func), (*inputs, *outputs), operations, dtype)
        if name in WAITING and is_marked:
            gpu.wait(name)
        return result

    def _refuse(self, func, name, args, kwargs, inputs):
        """Raise what CUDA raises, and enter the copies that it makes unasked."""
        generator = kwargs.get("generator")
        if generator is not None and generator.device.type == "cpu":
            raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
        if (
            name in NOT_DETERMINISTIC
            and args[0].is_floating_point()
            and torch.are_deterministic_algorithms_enabled()
        ):
            raise RuntimeError(f"{name}_cuda_kernel does not have a deterministic implementation")
        if name in INDEXING:
            self._refuse_indices(func, args)
            return
        strangers = [tensor for tensor in inputs if not on_gpu(tensor)]
        if not strangers:
            return
        if name == "copy_":
            target, source = args[:2]
            if source.ndim or not on_gpu(target):  # a CPU scalar is an argument of the kernel
                self.gpu.transfer(source, to_gpu=on_gpu(target))
            return
        takes_scalars = torch.Tag.pointwise in func.tags or name in TAKE_CPU_SCALARS
        if not takes_scalars or any(
            t.ndim for t in (*strangers, *written(func, args, kwargs)) if not on_gpu(t)
        ):
            raise on_two_devices(func)

    def _refuse_indices(self, func, args):
        indices = [index for index in args[1] if index is not None]
        if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
            self.gpu.wait("boolean index")
        if not on_gpu(args[0]):
            raise RuntimeError("indices should be on the same device as the tensor (cpu)")
        for index in indices:
            if not on_gpu(index):
                self.gpu.transfer(index, to_gpu=True)
        values = args[2:3]
        if any(isinstance(v, Tensor) and v.ndim and not on_gpu(v) for v in values):
            raise on_two_devices(func)


def written(func, args, kwargs):
    """Return the tensors that an operation writes to."""
    pairs = zip(func._schema.arguments, args, strict=False)
    inplace = [v for a, v in pairs if a.alias_info is not None and a.alias_info.is_write]
    return tensors_in((inplace, [v for name, v in kwargs.items() if name.startswith("out")]))


def on_two_devices(func):
    return RuntimeError(
        "Expected all tensors to be on the same device, but found at least two devices, cuda:0 "
        f"and cpu! (when checking arguments in {func})"
    )


def not_on_host():
    return TypeError(
        "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to "
        "host memory first."
    )


def not_pinnable():
    return RuntimeError("cannot pin CUDA memory: only dense CPU tensors can be pinned")


def of_host(original, error):
    @functools.wraps(original)
    def method(tensor, *args, **kwargs):
        if on_gpu(tensor):
            raise error()
        return original(tensor, *args, **kwargs)

    return method


def numpy_of_host(original):
    @functools.wraps(original)
    def numpy(tensor, *, force=False):
        if on_gpu(tensor) and not force:
            raise not_on_host()
        return original(tensor.detach().cpu() if force else tensor, force=force)

    return numpy


def dlpack_of_host(original):
    @functools.wraps(original)
    def dlpack(tensor, **kwargs):
        if not on_gpu(tensor):
            return original(tensor, **kwargs)
        target = kwargs.get("dl_device")
        if target is None or int(target[0]) != 1 or kwargs.get("copy") is False:
            raise BufferError("a capsule of a pretended CUDA tensor")
        return original(tensor.cpu(), **kwargs)

    return dlpack


def reduced(original):
    @functools.wraps(original)
    def reduce(tensor, protocol):
        if not on_gpu(tensor):
            return original(tensor, protocol)
        return load_on_gpu, (tensor.detach().cpu(), tensor.requires_grad)

    return reduce


def load_on_gpu(tensor, requires_grad):
    if not _active:
        raise RuntimeError(
            "Attempting to deserialize object on a CUDA device but torch.cuda.is_available() is "
            "False."
        )
    return tensor.cuda().requires_grad_(requires_grad)


def recurrent(original):
    """Return a recurrent layer of cuDNN, which has no gradient in evaluation mode."""

    @functools.wraps(original)
    def layer(*args):
        results = original(*args)
        trains = args[6] if isinstance(args[6], bool) else args[7]
        output, uses_cudnn = results[0], torch.backends.cudnn.enabled
        if uses_cudnn and not trains and output.requires_grad and on_gpu(output):
            output.register_hook(refuse_backward)
        return results

    return layer


def refuse_backward(gradient):
    raise RuntimeError("cudnn RNN backward can only be called in training mode")
