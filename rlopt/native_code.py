"""Pure functions of tensors as native code, by torch's compiler."""

from __future__ import annotations

import importlib.util
import inspect
import os
import shutil
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

NEW_ENOUGH = hasattr(torch.compiler, "skip_all_guards_unsafe") and (
    "isolate_recompiles" in inspect.signature(torch.compile).parameters
)


def compiled(function: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """A pure function of tensors on a device as one of native code, one for each form of its arguments.

    torch would ask at every call whether anything is different from when it compiled, which takes as long as the arithmetic.
    What may be different is known here: the shapes and types of arguments. The rest must not change, such as attributes of
    objects that the function reads, and which arguments are the same tensor.

    Where torch fails to compile a form, a warning says why, and the function is called as it is.
    """
    forms: dict[Any, Callable[..., Any]] = {}

    def first(form: Any, arguments: Any) -> Any:
        from torch._dynamo.exc import TorchDynamoException  # an import of seconds

        native = as_native(function, device, torch.compiler.skip_all_guards_unsafe, fullgraph=True, dynamic=False)
        try:
            result, forms[form] = native(*arguments), native
        except TorchDynamoException as error:
            _warn(error)
            result, forms[form] = function(*arguments), function
        return result

    def call(*arguments: Any) -> Any:
        form = _form(arguments)
        return forms[form](*arguments) if form in forms else first(form, arguments)

    return call


def as_native(
    function: Callable[..., Any], device: torch.device, guards: Callable[..., Any], **more: Any
) -> Callable[..., Any]:
    """`torch.compile` with `options` and more arguments; the function itself, with a warning, if torch does not know one."""
    try:
        return torch.compile(function, **options(device, guards), **more)
    except RuntimeError as error:
        _warn(error)
        return function


def options(device: torch.device, guards: Callable[..., Any]) -> dict[str, Any]:
    """Arguments of `torch.compile` for functions of tensors on a device.

    Args:
        device: "cpu", or another.
        guards: which of its questions torch asks at every call: one of the filters in `torch.compiler`.
    """
    chosen: dict[str, Any] = {"guard_filter_fn": guards}
    if device.type == "cpu":
        # One program for all kernels and the calls between them, not one for each kernel and Python between: half the time of
        # compiling, and steps that are 5 to 15 % faster. For a single program, compiling its headers first does not pay.
        chosen |= {"cpp_wrapper": True, "cpp_cache_precompile_headers": False}
    # Before it compiles, torch would try the instructions that the CPU says it has, in programs and processes of their own.
    # AMX is still tried, since older compilers do not know it.
    known: Any = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    if not known.get("amx_tile", True):
        chosen["cpp.vec_isa_ok"] = True
    # Isolated: nothing compiled is shared with other agents, whose losses and activations may differ.
    return {"isolate_recompiles": True, "options": chosen}


def no_compiler(device: torch.device) -> str | None:
    """Why nothing can be compiled for a device here, or None."""
    if not NEW_ENOUGH:
        return f"torch {torch.__version__} is too old to compile the update"
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return "torch needs Triton to compile for a GPU, and it was not found"
    if not _any_found(os.environ.get("CXX", "g++"), "clang++", "cl", path=os.environ.get("PATH")):
        return "torch needs a C++ compiler to compile, and none was found"
    return None


def _warn(error: Exception) -> None:
    reason = str(error).strip().partition("\n")[0]
    warnings.warn(f"compile: not compiled, because torch failed: {reason}", stacklevel=3)


@cache
def _any_found(*programs: str, path: str | None) -> bool:
    return any(shutil.which(name, path=path) for name in programs)


def _form(argument: Any) -> Any:
    """What compiled code depends on of tensors in tuples, dictionaries and None."""
    if isinstance(argument, Tensor):
        return argument.shape, argument.stride(), argument.dtype, argument.device
    if isinstance(argument, dict):
        return tuple((key, _form(value)) for key, value in argument.items())
    return None if argument is None else tuple(map(_form, argument))
