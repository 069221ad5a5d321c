"""A pretended GPU: tensors that are computed on the CPU and behave as if they were on a device.

`FakeTensorMode` cannot run a backward pass without a card, and computes nothing. Here every kernel
runs on the CPU, so that a training on the pretended device must give the CPU's own bits, and what
a device would refuse or wait for raises `Refused`.
"""

import sys
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import torch
import torch._dynamo  # before anything is pretended: it looks at the functions of torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from resnetlib.augment import image_ops
from resnetlib.device import DeviceSettings

aten = torch.ops.aten
# What needs a value, or a shape, that only the device knows.
WAITING = {
    aten._local_scalar_dense,
    aten.bincount,
    aten.equal,
    aten.is_nonzero,
    aten.masked_select,
    aten.nonzero,
    aten.repeat_interleave,
    aten.unique_consecutive,
    aten.unique_dim,
    aten._linalg_check_errors,
    aten._unique2,
}
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
FACTORIES = {
    *(torch.arange, torch.empty, torch.eye, torch.full, torch.linspace, torch.ones, torch.zeros),
    *(torch.rand, torch.randint, torch.randn, torch.randperm),
}


class Refused(AssertionError):
    """What a device cannot do, or what would make the processor wait for it."""


class DeviceTensor(Tensor):
    """A tensor on the pretended device; `data_on_cpu` has its values."""

    def __new__(cls, values: Tensor, device: "FakeDevice"):
        tensor = Tensor._make_wrapper_subclass(
            cls,
            values.size(),
            values.stride(),
            values.storage_offset(),
            dtype=values.dtype,
        )
        tensor.data_on_cpu = values
        tensor.owner = device
        return tensor

    @property
    def device(self):
        return self.owner.device

    @property
    def is_cuda(self):
        return self.device.type == "cuda"

    def __repr__(self):
        return f"DeviceTensor({self.data_on_cpu}, {self.device})"

    def __deepcopy__(self, memo):
        copied = self.detach().clone()
        if isinstance(self, nn.Parameter):
            copied = nn.Parameter(copied, self.requires_grad)
        return memo.setdefault(id(self), copied)

    def __reduce_ex__(self, protocol):
        return self.data_on_cpu.__reduce_ex__(protocol)  # a checkpoint has plain tensors

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        device = next(leaf.owner for leaf in leaves if isinstance(leaf, DeviceTensor))
        return device.run(func, args, kwargs or {})


class FakeDevice(TorchFunctionMode):
    """Inside this context tensors can be moved to, and made on, this device (cuda, cuda:1, mps).

    `strict()` is the training step: there nothing may wait for the device. `kernels` lists what
    ran on it, with every argument that is not a tensor, while it is not None.
    """

    def __init__(self, kind: str):
        super().__init__()
        self.device = torch.device(kind if ":" in kind else f"{kind}:0")
        self.forbidden = False
        self.waits = 0
        self.kernels = None

    def __enter__(self):
        self.patches = ExitStack()
        for owner, name, value in self.pretences():
            self.patches.enter_context(patch.object(owner, name, value))
        image_ops._color.cache_clear()
        return super().__enter__()

    def __exit__(self, *error):
        self.patches.close()
        image_ops._color.cache_clear()
        return super().__exit__(*error)

    def pretences(self):
        """What torch, without CUDA, and the library would do otherwise where there is a card."""

        def autocast(settings):
            reduced = settings.precision == torch.bfloat16  # float16 takes a CPU minutes
            return torch.autocast("cpu", torch.bfloat16, reduced, cache_enabled=False)

        group_tensors = torch._C._group_tensors_by_device_and_dtype

        def group(lists, with_indices=False):  # in C++ the tensors are on the CPU
            device = next(tensor for tensor in lists[0] if tensor is not None).device
            groups = group_tensors(lists, with_indices).items()
            return {(device, dtype): tensors for (_, dtype), tensors in groups}

        yield torch._C, "_group_tensors_by_device_and_dtype", group
        # A parameter that moves to the device is made anew, as it is where it moves to a GPU.
        yield torch, "_has_compatible_shallow_copy_type", lambda old, new: old is new
        yield torch.cuda, "default_generators", 2 * (torch.default_generator,)
        yield torch.cuda, "current_device", lambda: 0
        yield torch.cuda.amp.common, "amp_definitely_not_available", lambda: False
        optimizer = sys.modules["torch.optim.optimizer"]  # not an attribute of torch.optim
        kinds = [*optimizer._foreach_supported_types, DeviceTensor]
        yield optimizer, "_foreach_supported_types", kinds
        yield DeviceSettings, "autocast", autocast

    @contextmanager
    def strict(self):
        self.forbidden = True
        try:
            yield
        finally:
            self.forbidden = False

    def wait(self, what: str) -> None:
        self.waits += 1
        if self.forbidden:
            raise Refused(f"{what} waits for the device")

    # Kernels --------------------------------------------------------------------------------------

    def run(self, func, args, kwargs):
        """The kernel on the values, its results on the device."""
        packet = func.overloadpacket
        self.check(func, args, kwargs)
        if self.kernels is not None:
            rest = tree_map(lambda x: x.shape if isinstance(x, Tensor) else x, (args, kwargs))
            self.kernels.append((str(func), str(rest)))
        known = {}

        def unwrap(value):
            if not isinstance(value, DeviceTensor):
                return value
            known[id(value.data_on_cpu)] = value
            return value.data_on_cpu

        result = func(*tree_map(unwrap, args), **tree_map(unwrap, kwargs))
        if packet is aten._local_scalar_dense or packet is aten.equal:
            return result
        target = self.target(func, args)
        if isinstance(target, Tensor) and not isinstance(target, DeviceTensor):
            return result  # a copy to the CPU

        def wrap(value):
            if not isinstance(value, Tensor):
                return value
            return known[id(value)] if id(value) in known else self.wrap(value)

        return tree_map(wrap, result)

    def put(self, values: Tensor) -> DeviceTensor:
        """A copy of the values on the device, as it is there before a step."""
        return self.wrap(values.clone())

    def wrap(self, values: Tensor) -> DeviceTensor:
        if self.device.type == "mps" and values.dtype == torch.float64:
            raise Refused("MPS has no float64")
        return DeviceTensor(values, self)

    @staticmethod
    def target(func, args):
        """What a kernel in place writes to."""
        written = func._schema.arguments and func._schema.arguments[0].alias_info
        return args[0] if written and written.is_write else None

    def check(self, func, args, kwargs) -> None:
        packet = func.overloadpacket
        if packet in WAITING:
            self.wait(str(packet))
        plain = [
            leaf
            for leaf in tree_leaves((args, kwargs))
            if isinstance(leaf, Tensor) and not isinstance(leaf, DeviceTensor)
        ]
        if packet is aten.copy_ and plain:
            self.copy(to_host=plain[0] is args[0], non_blocking=args[2] if len(args) > 2 else False)
            return
        if packet is aten.convolution and not args[0].is_floating_point():
            raise Refused("a convolution of integers")
        target = self.target(func, args)
        lists = [arg for arg in args if isinstance(arg, list | tuple)]
        listed = {id(leaf) for leaf in tree_leaves(lists)}
        if any(tensor.ndim or tensor is target or id(tensor) in listed for tensor in plain):
            raise Refused(f"{func} of tensors on {self.device} and on the CPU")
        if packet in INDEXING and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        ):
            self.wait("an index that is a mask")

    def copy(self, to_host: bool, non_blocking: bool) -> None:
        if non_blocking and (to_host or self.device.type == "mps"):
            raise Refused("a copy whose end nothing waits for")
        if to_host:
            self.wait("a copy to the CPU")
        elif self.device.type == "cuda" and not non_blocking:
            self.wait("a copy from the CPU that is not `non_blocking`")

    # Functions of torch ---------------------------------------------------------------------------

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        first = args[0] if args else None
        if func is Tensor.to:
            return self.to(*args, **kwargs)
        if func is Tensor.cpu:
            return self.to(first, "cpu")
        if func in (Tensor.tolist, Tensor.numpy, Tensor.__array__) and isinstance(
            first, DeviceTensor
        ):
            if func is not Tensor.tolist:
                raise TypeError(f"can't convert {self.device} tensor to numpy")
            self.wait("tolist")
            return first.data_on_cpu.tolist()
        if not self.is_meant(kwargs.get("device")):
            return func(*args, **kwargs)
        del kwargs["device"]
        if kwargs.get("generator") not in (None, torch.default_generator):
            raise Refused(f"numbers drawn on {self.device} by a generator of the CPU")
        if func is torch.as_tensor and isinstance(first, DeviceTensor):
            return first
        if func in (torch.tensor, torch.as_tensor):
            self.copy(to_host=False, non_blocking=False)
        elif func not in FACTORIES:
            raise NotImplementedError(f"{func} on the pretended device")
        requires_grad = kwargs.pop("requires_grad", False)
        return self.wrap(func(*args, **kwargs)).requires_grad_(requires_grad)

    def is_meant(self, device) -> bool:
        """Whether a device is this one; without an index it is the first card."""
        device = torch.device("cpu" if device is None else device)
        if device.type == self.device.type and (device.index or 0) != self.device.index:
            raise Refused(f"a tensor on {device} in a run on {self.device}")
        return device.type == self.device.type

    def to(self, tensor, *args, copy=False, **kwargs):
        device, dtype, non_blocking, layout = torch._C._nn._parse_to(*args, **kwargs)
        settings = {} if dtype is None else {"dtype": dtype}
        if layout is not None:
            settings["memory_format"] = layout
        here = isinstance(tensor, DeviceTensor)
        if device is None or self.is_meant(device) == here:
            return Tensor.to(tensor, **settings, copy=copy) if settings or copy else tensor
        self.copy(to_host=here, non_blocking=non_blocking)
        if here:
            return tensor.detach().data_on_cpu.to(**settings, copy=True)
        return self.wrap(tensor.detach().to(**settings, copy=True))
