"""An accelerator that is not there: tensors say that they lie on it, and ops that mix devices fail.

`torch.device("emu")` is a device of its own to PyTorch and Lightning. Its tensors hold their values in a
tensor on the CPU, and the CPU's kernels run on those: every number is real, through backward passes and
optimisers too, and equals the CPU's. What CUDA refuses is refused:

- a tensor on the CPU among tensors on the device. Allowed, as there: one 0-dimensional input of an
  elementwise op, the indices of `x[...]`, copies and reads of a value;
- a CPU generator for numbers that are drawn on the device; the device's own generator is another one than
  the CPU's, so that numbers drawn on it differ.

`host_waits` counts what makes the host wait for a real device: reading a value, copying to the CPU, and
outputs whose size depends on values.
"""

from __future__ import annotations

import types
from collections import Counter
from typing import Any

import torch
from lightning.pytorch.accelerators import Accelerator, AcceleratorRegistry
from lightning.pytorch.strategies import SingleDeviceStrategy, StrategyRegistry
from torch.utils import _pytree as pytree
from torch.utils._mode_utils import no_dispatch
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "emu"
aten = torch.ops.aten

COPIES = (aten._to_copy.default, aten.copy_.default)
INDEXED = (
    aten.index.Tensor,
    aten._unsafe_index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
)
SCALAR_INPUT = (aten.fill_.Tensor, aten.masked_fill.Tensor, aten.masked_fill_.Tensor)
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "bincount", "equal")

host_waits: Counter[str] = Counter()
_generator = torch.Generator()


class EmulatedTensor(torch.Tensor):
    """Its values are `host`, a tensor on the CPU."""

    host: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, host: torch.Tensor) -> EmulatedTensor:
        tensor = torch.Tensor._make_wrapper_subclass(
            cls,
            host.size(),
            strides=host.stride(),
            storage_offset=host.storage_offset(),
            dtype=host.dtype,
            device=torch.device(NAME, 0),
        )
        tensor.host = host
        return tensor

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"{self.host!r} on {NAME}"

    def __deepcopy__(self, memo: dict):
        copied = EmulatedTensor(self.host.clone())
        if isinstance(self, torch.nn.Parameter):
            copied = torch.nn.Parameter(copied, self.requires_grad)
        memo[id(self)] = copied
        return copied

    def __reduce_ex__(self, protocol: int):
        return self.host.__reduce_ex__(protocol)

    def untyped_storage(self):
        return self.host.untyped_storage()

    def data_ptr(self) -> int:
        return self.host.data_ptr()

    def __format__(self, spec: str) -> str:
        return format(self.item() if self.ndim == 0 else self.host, spec)

    def tolist(self):
        return self.cpu().tolist()

    def numpy(self, *, force: bool = False):
        if not force:
            raise TypeError(f"can't convert {NAME}:0 device type tensor to numpy")
        return self.host.numpy()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        # In inference mode ops arrive here before PyTorch has taken them apart.
        result = func.decompose(*args, **(kwargs or {}))
        return _run(func, args, kwargs or {}) if result is NotImplemented else result


def _on_device(value: object) -> bool:
    return isinstance(value, EmulatedTensor)


def _is_emulated(device: object) -> bool:
    return device is not None and torch.device(device).type == NAME


def _tensors(value: object) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def _check_devices(func, args: tuple, kwargs: dict) -> None:
    """Refuse what CUDA refuses."""
    if func in COPIES:
        return
    tensors = _tensors((args, kwargs))
    if func in INDEXED:
        indices = _tensors(args[1])
        if _on_device(args[0]):
            indices = [i for i in indices if _on_device(i)]
        tensors = [args[0], *indices, *[t for t in _tensors(args[2:]) if t.ndim or _on_device(t)]]
    elif torch.Tag.pointwise in func.tags or func in SCALAR_INPUT:
        scalars = [t for t in tensors if t.ndim == 0 and not _on_device(t)]
        first_is_written = (
            func._schema.is_mutable and tensors[0] is scalars[0] if scalars else False
        )
        if len(scalars) == 1 and not first_is_written:
            tensors = [t for t in tensors if t is not scalars[0]]
    if len({_on_device(t) for t in tensors}) > 1:
        shapes = ", ".join(f"{list(t.shape)} on {t.device}" for t in tensors)
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, "
            f"{NAME}:0 and cpu, in {func}: {shapes}"
        )


def _run(func, args: tuple, kwargs: dict) -> Any:
    _check_devices(func, args, kwargs)
    wrappers: dict[int, EmulatedTensor] = {}

    def to_host(value: object) -> object:
        if isinstance(value, EmulatedTensor):
            wrappers[id(value.host)] = value
            return value.host
        if isinstance(value, torch.Generator):
            raise RuntimeError(
                f"Expected a '{NAME}' device type for generator but found '{value.device.type}'"
            )
        return value

    host_args, host_kwargs = pytree.tree_map(to_host, (args, kwargs))
    device = kwargs.get("device")
    if device is not None:
        host_kwargs["device"] = torch.device("cpu")
    host_kwargs.pop("pin_memory", None)
    to_device = device is None or _is_emulated(device)
    _count_waits(func, args, to_device)
    if torch.Tag.nondeterministic_seeded in func.tags:
        result = _draw(func, host_args, host_kwargs)
    else:
        result = func(*host_args, **host_kwargs)
    if torch.Tag.inplace_view in func.tags:
        with no_dispatch():  # the wrapper's shape follows
            func(*args, **kwargs)

    def to_device_(value: object) -> object:
        if not isinstance(value, torch.Tensor) or not to_device:
            return value
        known = wrappers.get(id(value))
        if known is None:
            return EmulatedTensor(value)
        if known.shape != value.shape or known.stride() != value.stride():
            raise NotImplementedError(f"{func} changes the shape of a tensor in place")
        return known

    if func is aten.copy_.default and not _on_device(args[0]):
        return args[0]
    # A view of an ordinary tensor is one too, in inference mode as elsewhere.
    inference = args[0].is_inference() if func.is_view else torch.is_inference_mode_enabled()
    with torch.inference_mode(inference):
        return pytree.tree_map(to_device_, result)


def _count_waits(func, args: tuple, to_device: bool) -> None:
    name = func._schema.name.removeprefix("aten::")
    if name in WAITS or name.startswith(("unique", "_unique")):
        host_waits[name] += 1
    elif (func is aten._to_copy.default and not to_device) or (
        func is aten.copy_.default and not _on_device(args[0])
    ):
        host_waits["to cpu"] += 1
    elif func in INDEXED and any(t.dtype == torch.bool for t in _tensors(args[1])):
        host_waits["nonzero"] += 1


def _draw(func, args: tuple, kwargs: dict) -> Any:
    """Run an op that draws random numbers with the device's generator in the CPU's place."""
    of_cpu = torch.get_rng_state()
    torch.set_rng_state(_generator.get_state())
    try:
        return func(*args, **kwargs)
    finally:
        _generator.set_state(torch.get_rng_state())
        torch.set_rng_state(of_cpu)


class EmulatedAccelerator(Accelerator):
    """One emulated device, `--trainer.accelerator emu --trainer.strategy emu`."""

    def setup_device(self, device: torch.device) -> None:
        if device.type != NAME:
            raise ValueError(f"device is {device}, expected {NAME}")

    def teardown(self) -> None:
        pass

    def get_device_stats(self, device: torch.device) -> dict[str, Any]:
        return {}

    @staticmethod
    def parse_devices(devices: object) -> list[int]:
        return [0]

    @staticmethod
    def get_parallel_devices(devices: list[int]) -> list[torch.device]:
        return [torch.device(NAME, index) for index in devices]

    @staticmethod
    def auto_device_count() -> int:
        return 1

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def name() -> str:
        return NAME


def _module() -> types.ModuleType:
    """What PyTorch looks for as `torch.emu`."""
    module = types.ModuleType(f"torch.{NAME}")
    module.is_available = module.is_initialized = lambda: True
    module._is_in_bad_fork = lambda: False
    module.get_amp_supported_dtype = lambda: [torch.float16, torch.bfloat16]
    module.device_count = lambda: 1
    module.current_device = lambda: 0
    module.manual_seed = module.manual_seed_all = lambda seed: _generator.manual_seed(seed ^ 0xE)
    module.get_rng_state = lambda device=None: _generator.get_state()
    module.set_rng_state = lambda state, device=None: _generator.set_state(state)
    return module


def _factories():
    """The ops that make tensors from none: on the device there is nothing else to find them by."""
    for name in torch._C._dispatch_get_all_op_names():
        namespace, _, rest = name.partition("::")
        base, _, overload = rest.partition(".")
        if namespace != "aten" or base.startswith(("_", "sparse", "from_file", "quantized")):
            continue
        try:
            op = getattr(getattr(aten, base), overload or "default")
        except (AttributeError, RuntimeError):
            continue
        arguments = op._schema.arguments
        if any(a.name == "device" for a in arguments) and not any(
            "Tensor" in str(a.type) for a in arguments
        ):
            yield rest, op


_libraries: list[torch.library.Library] = []


def register() -> None:
    """Make the device known to PyTorch and Lightning; it stays so to the end of the process."""
    if _libraries:
        return
    # A module moves from device to device in place, as between a CPU and a GPU: tied weights stay tied.
    torch.__future__.set_swap_module_params_on_conversion(True)
    _setup_privateuseone_for_python_backend(NAME, backend_module=_module())
    library = torch.library.Library("aten", "IMPL")
    for name, op in _factories():
        library.impl(name, lambda *args, op=op, **kwargs: _run(op, args, kwargs), "PrivateUse1")
    # `torch.tensor(data, device=...)` fills its result without asking the subclass.
    library.impl(
        "_copy_from", lambda value, to, *_: _run(aten.copy_.default, (to, value), {}), "PrivateUse1"
    )
    _libraries.append(library)
    AcceleratorRegistry.register(NAME, EmulatedAccelerator, description="for tests")
    StrategyRegistry.register(NAME, SingleDeviceStrategy, device=torch.device(NAME, 0))
