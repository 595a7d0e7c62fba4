"""One training step as the list of kernels that it runs, written down once and then replayed without Python's modules.

A step of a small network spends more time in ``nn.Module`` calls and in building and walking the autograd graph than
in its kernels. All kernels of a step, forward and backward, pass torch's dispatcher below autograd; there they are
written down, and become a straight line of Python that calls the same kernels on the same operands in the same order.
So a replay gives the bits of the plain step, wherever the step does not depend on the values of its tensors.

That is made sure of, not hoped for: while a step is written down, its parameters, buffers, inputs and labels are
stand-ins without data. Whatever asks a stand-in for its values (``item``, ``if``, ``tolist``, ``numpy``, a result
whose shape depends on data) raises; and what changes a tensor from outside the step, or draws from a generator of its
own, is noticed. Such a step is an :class:`UnrecordableError` and stays plain.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import torch
from torch.utils._python_dispatch import TorchDispatchMode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from torch import Tensor, nn

    from desim_fl.learning.samples import Samples

    Loss = Callable[[nn.Module, Samples], Tensor]

_ATEN = torch.ops.aten
_SAME = {_ATEN.detach.default, _ATEN.alias.default}  # another name for the same values
_FRESH = {_ATEN.lift_fresh.default}  # what ``torch.tensor([1.0])`` gives: a new tensor each time
_VALUES = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
_LIBRARIES = {"aten", "torchvision"}
_LITERALS = (bool, int, float, type(None))


class UnrecordableError(Exception):
    """Why a step cannot be written down."""


def same_bits(first: Tensor | None, second: Tensor | None) -> bool:
    """Compare bit by bit: NaN equals itself, and -0.0 is not 0.0."""
    if first is None or second is None:
        return first is second
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    bits = [value.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for value in (first, second)]
    return torch.equal(*bits)


class StandIn(torch.Tensor):
    """A tensor's size, strides, type and place, without its data; ``content`` are the data, ``register`` its number."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # noqa: SLF001  # pyright: ignore[reportAssignmentType]

    content: Tensor
    register: int

    def __new__(cls, real: Tensor, register: int, *, requires_grad: bool = False) -> Self:
        """Make a tensor without memory."""
        made = torch.Tensor._make_wrapper_subclass(  # noqa: SLF001  # pyright: ignore[reportAttributeAccessIssue]
            cls,
            real.size(),
            strides=real.stride(),
            storage_offset=real.storage_offset(),
            dtype=real.dtype,
            layout=real.layout,
            device=real.device,
            requires_grad=requires_grad,
        )
        made.content, made.register = real, register
        return made

    def __init__(self, real: Tensor, register: int, *, requires_grad: bool = False) -> None:
        del real, register, requires_grad

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types, args, kwargs
        raise UnrecordableError(f"{func} is called on it outside of the step")


class Reference(NamedTuple):
    """A register, as an operand of a kernel."""

    register: int


@dataclass(frozen=True, slots=True, eq=False)
class Constant:  # noqa: PLW1641  (nobody looks one up)
    """A value that is the same in each replay; tensors among them belong to the recording alone."""

    value: Any

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Constant) or type(self.value) is not type(other.value):
            return False
        if isinstance(self.value, torch.Tensor):
            return same_bits(self.value, other.value)
        return repr(self.value) == repr(other.value)  # NaN equals itself, -0.0 is not 0.0


class Call(NamedTuple):
    """One kernel: operands (nested lists of references and constants) and the registers of its results."""

    kernel: Any
    args: list[Any]
    kwargs: dict[str, Any]
    results: list[Any]


class Tape(TorchDispatchMode):
    """Runs kernels on the real tensors behind stand-ins, and writes them down."""

    def __init__(self, changing: Iterable[Tensor]) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.registers = 0
        self._held = tuple(
            changing
        )  # alive as long as their addresses are compared: a freed one may be another tensor's
        self._changing = {_storage(value) for value in self._held if value.numel()}

    def stand_in(self, real: Tensor, *, requires_grad: bool = False) -> StandIn:
        """Make the stand-in of a tensor in a new register."""
        self.registers += 1
        return StandIn(real, self.registers - 1, requires_grad=requires_grad)

    def kernel(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one kernel and write it down."""
        del types
        kwargs = kwargs or {}
        if func in _SAME and isinstance(args[0], StandIn):
            return StandIn(args[0].content, args[0].register)
        self._allowed(func, args, kwargs)
        run = _ATEN.clone.default if func in _FRESH else func
        known = {
            id(value.content): value for value in _tensors([*args, *kwargs.values()]) if isinstance(value, StandIn)
        }
        written = [self._operand(value) for value in args], {key: self._operand(value) for key, value in kwargs.items()}
        self._unchanging(func, args, kwargs)
        given = run(*_real(list(args)), **{key: _real(value) for key, value in kwargs.items()})
        results = self._results(given, known)
        self.calls.append(Call(run, *written, _registers(results)))
        return results

    def _allowed(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        if func.namespace not in _LIBRARIES:
            raise UnrecordableError(f"{func} is an operator of its own")
        if _VALUES.intersection(func.tags) and not _plain_indexing(func, args):
            raise UnrecordableError(f"{func} depends on the values of a tensor")
        if torch.Tag.inplace_view in func.tags:
            raise UnrecordableError(f"{func} gives a tensor another shape")
        if any(isinstance(value, torch.Generator) for value in [*args, *kwargs.values()]):
            raise UnrecordableError(f"{func} draws from a generator of its own")

    def _operand(self, value: Any) -> Any:
        """A tensor from outside stays a constant, unless it is another way to what changes from step to step."""
        if isinstance(value, StandIn):
            return Reference(value.register)
        if isinstance(value, (list, tuple)):
            return [self._operand(item) for item in value]
        if isinstance(value, torch.Tensor) and (value.requires_grad or _storage(value) in self._changing):
            raise UnrecordableError("it reaches a parameter or buffer by another way than its module")
        return Constant(value)

    @staticmethod
    def _unchanging(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        """Refuse a kernel that writes into a constant."""
        for place, argument in enumerate(func._schema.arguments):  # noqa: SLF001
            value = args[place] if place < len(args) else kwargs.get(argument.name)
            if argument.alias_info is not None and argument.alias_info.is_write:
                for target in _tensors([value]):
                    if not isinstance(target, StandIn):
                        raise UnrecordableError(f"{func} changes a tensor that is neither parameter nor buffer")

    def _results(self, given: Any, known: dict[int, StandIn]) -> Any:
        if isinstance(given, torch.Tensor):
            same = known.get(id(given))
            return self.stand_in(given) if same is None else same
        if isinstance(given, (list, tuple)):
            return type(given)([self._results(item, known) for item in given])
        return given


# Not defined in the class: torch would wrap it there, and the first call would import its compiler (1.5 s).
Tape.__torch_dispatch__ = Tape.kernel  # pyright: ignore[reportAttributeAccessIssue]


def _storage(value: Tensor) -> int:
    return value.untyped_storage().data_ptr()


def _plain_indexing(func: Any, args: Sequence[Any]) -> bool:
    """Indexing by numbers has a shape known beforehand; by a mask it has not."""
    indexed = func in {_ATEN.index.Tensor, _ATEN._unsafe_index.Tensor}  # noqa: SLF001
    return indexed and not any(value.dtype in {torch.bool, torch.uint8} for value in _tensors(list(args[1])))


def _tensors(values: Iterable[Any]) -> Iterable[Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _real(value: Any) -> Any:
    if isinstance(value, StandIn):
        return value.content
    return [_real(item) for item in value] if isinstance(value, (list, tuple)) else value


def _registers(results: Any) -> Any:
    if isinstance(results, StandIn):
        return results.register
    return [_registers(item) for item in results] if isinstance(results, (list, tuple)) else None


class Program(NamedTuple):
    """A step written down: ``inputs`` registers are filled first, then ``calls`` follow, then ``outputs`` are read.

    The inputs are parameters, buffers, batch inputs and labels; the outputs the loss and one gradient a parameter
    (``None`` where a parameter got none).
    """

    inputs: int
    calls: tuple[Call, ...]
    outputs: tuple[int | None, ...]


class Places(NamedTuple):
    """Every (owner, attribute) of each tensor of a module: parameters (frozen ones are buffers here) and buffers."""

    parameters: list[list[tuple[nn.Module, str]]]
    buffers: list[list[tuple[nn.Module, str]]]


def places(module: nn.Module) -> Places:
    """Find where a module keeps its tensors, each tensor once, in order of registration."""
    trainable: dict[int, list[tuple[nn.Module, str]]] = {}
    others: dict[int, list[tuple[nn.Module, str]]] = {}
    for owner in module.modules():
        for name, value in owner.named_parameters(recurse=False, remove_duplicate=False):
            (trainable if value.requires_grad else others).setdefault(id(value), []).append((owner, name))
        for name, value in owner.named_buffers(recurse=False, remove_duplicate=False):
            others.setdefault(id(value), []).append((owner, name))
    return Places(list(trainable.values()), list(others.values()))


def tensors(found: list[list[tuple[nn.Module, str]]]) -> list[Tensor]:
    """The tensors at these places now."""
    return [getattr(*sites[0]) for sites in found]


def record(module: nn.Module, batch: Samples, loss: Loss) -> Program:
    """Write down one step of ``module`` on ``batch``; the module's own tensors are not touched.

    Raises ``UnrecordableError``, or whatever the step raises on stand-ins.
    """
    there = places(module)
    outside = [*tensors(there.parameters), *tensors(there.buffers)]
    mine = copy.deepcopy(module)  # so that nothing that a step leaves behind in Python stays
    here = places(mine)
    tape = Tape([*outside, *tensors(here.parameters), *tensors(here.buffers), *batch])
    parameters = [
        _replaced(tape, sites, value.detach().clone(), trainable=True)
        for sites, value in zip(here.parameters, tensors(here.parameters), strict=True)
    ]
    buffers = [
        _replaced(tape, sites, value.detach().clone())
        for sites, value in zip(here.buffers, tensors(here.buffers), strict=True)
    ]
    stand_ins = type(batch)(*(tape.stand_in(value) for value in batch))
    count = tape.registers
    with tape, torch.enable_grad():
        value = loss(mine, stand_ins)
        gradients = torch.autograd.grad(value, parameters, allow_unused=True)
    if not all(now is buffer for now, buffer in zip(tensors(here.buffers), buffers, strict=True)):
        raise UnrecordableError("it puts a new tensor in the place of a buffer")
    return Program(count, tuple(tape.calls), tuple(_output(one) for one in [value, *gradients]))


def _output(value: Tensor | None) -> int | None:
    if value is None or isinstance(value, StandIn):
        return None if value is None else value.register
    raise UnrecordableError("its loss or gradients do not depend on parameters and batch")


def _replaced(tape: Tape, sites: list[tuple[nn.Module, str]], value: Tensor, *, trainable: bool = False) -> StandIn:
    """Put a stand-in in all places of a tensor."""
    stand_in = tape.stand_in(value, requires_grad=trainable)
    for owner, name in sites:
        if name in owner._parameters:  # noqa: SLF001
            stand_in._is_param = True  # noqa: SLF001  (torch's own mark; Parameter itself accepts no stand-in)
        setattr(owner, name, stand_in)
    return stand_in


def compiled(program: Program) -> Callable[..., tuple[Any, ...]]:
    """Make a function of a program: it takes the input tensors and returns the outputs.

    It is plain Python, one line a kernel, and forgets each value after its last use.
    """
    writer = _Writer()
    last = _last_uses(program)
    kept = {output for output in program.outputs if output is not None}
    lines = [f"def step({', '.join(f'r{number}' for number in range(program.inputs))}):"]
    for number, call in enumerate(program.calls):
        lines.append("    " + writer.line(call))
        done = sorted(last[number] - kept)
        if done:
            lines.append("    del " + ", ".join(f"r{register}" for register in done))
    lines.append(f"    return ({', '.join('None' if one is None else f'r{one}' for one in program.outputs)},)")
    exec(compile("\n".join(lines), "<recorded step>", "exec"), writer.names)  # noqa: S102  (written here, line by line)
    return writer.names["step"]


def _last_uses(program: Program) -> list[set[int]]:
    """Registers that no kernel after this one needs, by kernel; those without any use end where they are made."""
    seen: set[int] = set(range(program.inputs))
    last: list[set[int]] = [set() for _ in program.calls]
    for number in reversed(range(len(program.calls))):
        call = program.calls[number]
        for register in _mentioned([call.args, list(call.kwargs.values()), call.results]):
            if register not in seen:
                seen.add(register)
                last[number].add(register)
    return last


def _mentioned(value: Any) -> Iterable[int]:
    if isinstance(value, Reference):
        yield value.register
    elif type(value) is int:
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _mentioned(item)


class _Writer:
    """Writes calls as source text; what has no literal gets a name."""

    def __init__(self) -> None:
        self.names: dict[str, Any] = {}

    def line(self, call: Call) -> str:
        operands = [self._text(value) for value in call.args]
        operands += [f"{key}={self._text(value)}" for key, value in call.kwargs.items()]
        text = f"{self._named(getattr(call.kernel, '_op', call.kernel))}({', '.join(operands)})"
        target = self._target(call.results)
        return f"{target} = {text}" if target else text

    def _target(self, results: Any) -> str:
        if isinstance(results, list):
            return "(" + "".join(f"{self._target(item) or '_'}, " for item in results) + ")" if results else ""
        return "" if results is None else f"r{results}"

    def _text(self, value: Any) -> str:
        if isinstance(value, Reference):
            return f"r{value.register}"
        if isinstance(value, list):
            if not any(True for _ in _mentioned(value)):
                return self._named([_bare(item) for item in value])
            return f"[{', '.join(self._text(item) for item in value)}]"
        plain = value.value
        finite = not isinstance(plain, float) or plain - plain == 0
        return repr(plain) if type(plain) in _LITERALS and finite else self._named(plain)

    def _named(self, value: Any) -> str:
        name = f"c{len(self.names)}"
        self.names[name] = value
        return name


def _bare(value: Any) -> Any:
    return [_bare(item) for item in value] if isinstance(value, list) else value.value
