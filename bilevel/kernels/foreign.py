"""NumPy functions called from JAX programs on CPUs, by XLA's foreign function interface, on its own buffers.

`jax.pure_callback` copies every array several times, and a program with one is not kept in the compilation cache. The
interface does neither, for a C function that reads its arguments from a `CallFrame`. The structures below are those of
`xla/ffi/api/c_api.h`, as far as they are needed here. That interface is binary compatible between versions: fields are
only ever added at the ends, and a change that breaks it changes its major version, which XLA refuses by name.
"""

import ctypes
import functools
import re
from collections.abc import Callable
from ctypes import POINTER, c_char, c_char_p, c_int, c_int64, c_size_t, c_uint32, c_void_p
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

#: `XLA_FFI_DataType`.
_DTYPES = {1: np.dtype(bool), 4: np.dtype(np.int32), 11: np.dtype(np.float32), 12: np.dtype(np.float64)}
#: `XLA_FFI_Extension_Metadata`, and `XLA_FFI_Error_Code_INTERNAL`.
_METADATA, _INTERNAL = 1, 13


def _structure(name: str, **fields: Any) -> type[ctypes.Structure]:
    """A structure of the interface, each of which begins with its size and a pointer to extensions."""
    head = {"struct_size": c_size_t, "extension": c_void_p}
    return type(name, (ctypes.Structure,), {"_fields_": [*head.items(), *fields.items()]})


_Buffer = _structure("Buffer", dtype=c_int, data=c_void_p, rank=c_int64, dims=POINTER(c_int64))
_Buffers = _structure("Buffers", size=c_int64, types=c_void_p, buffers=POINTER(POINTER(_Buffer)))
_Version = _structure("Version", major=c_int, minor=c_int)
_Error = _structure("Error", message=c_char_p, code=c_int)
_CreateError = ctypes.CFUNCTYPE(c_void_p, POINTER(_Error))
_Api = _structure("Api", version=_Version, internal=c_void_p, create_error=_CreateError)
_Frame = _structure("Frame", api=POINTER(_Api), context=c_void_p, stage=c_int, inputs=_Buffers, outputs=_Buffers)


class _Metadata(ctypes.Structure):
    _fields_ = [("struct_size", c_size_t), ("version", _Version), ("traits", c_uint32)]


class _Extension(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("type", c_int),
        ("next", c_void_p),
        ("metadata", POINTER(_Metadata)),
    ]


_Handler = ctypes.CFUNCTYPE(c_void_p, POINTER(_Frame))


def foreign_call(
    function: Callable[..., None], out: tuple[jax.ShapeDtypeStruct, ...], *args: Array
) -> tuple[Array, ...]:
    """What `function(*inputs, *outputs)`, NumPy arrays all, writes into its outputs. It must not keep any of them."""
    return tuple(jax.ffi.ffi_call(_target(function), out, vmap_method="sequential")(*args))


@functools.cache
def _target(function: Callable[..., None]) -> str:
    """The name under which XLA knows `function`."""
    name = f"{function.__module__}.{function.__qualname__}"
    jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(_handler(function)), platform="cpu")
    return name


@functools.cache
def _handler(function: Callable[..., None]) -> Any:
    """The C function, kept for as long as the process lives."""

    def handle(pointer: Any) -> int | None:
        frame = pointer.contents
        if frame.extension:
            # Not a call, but the question which version of the interface this was made for.
            extension = ctypes.cast(frame.extension, POINTER(_Extension)).contents
            if extension.type == _METADATA:
                version = extension.metadata.contents.version
                # Before JAX 0.9 XLA asks without naming its own.
                version.major, version.minor = 0, frame.api.contents.version.minor if frame.api else _minor_version()
            return None
        try:
            function(*_arrays(frame.inputs), *_arrays(frame.outputs))
        except BaseException as error:
            message = f"{function.__qualname__}: {type(error).__name__}: {error}".encode()
            return frame.api.contents.create_error(_Error(ctypes.sizeof(_Error), None, message, _INTERNAL))
        return None

    return _Handler(handle)


def _minor_version() -> int:
    """That of the interface, from the header that comes with it."""
    header = Path(jax.ffi.include_dir(), "xla", "ffi", "api", "c_api.h").read_text()
    return int(re.findall(r"define XLA_FFI_API_MINOR (\d+)", header)[0])


def _arrays(buffers: Any) -> list[np.ndarray]:
    return [_array(buffers.buffers[i].contents) for i in range(buffers.size)]


def _array(buffer: Any) -> np.ndarray:
    """The buffer as an array, without a copy."""
    dtype, shape = _DTYPES[buffer.dtype], tuple(buffer.dims[: buffer.rank])
    size = dtype.itemsize * int(np.prod(shape))
    if size == 0:
        return np.empty(shape, dtype)
    return np.frombuffer((c_char * size).from_address(buffer.data), dtype).reshape(shape)
