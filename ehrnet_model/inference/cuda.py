"""Device memory and streams through the CUDA runtime library, with ctypes and nothing to install.

Every JetPack brings libcudart; the functions used here exist unchanged from CUDA 11.4 to 13.
Without a driver the library loads and answers error 35, which is what tests see; so does one that
is newer than the driver. Tests see no GPU; by hand everything but engines ran on an H200 once
(libcudart 13: buffers, copies, a captured graph, memory that does not suffice).
"""

from __future__ import annotations

import ctypes
import logging
import re
import sys
from pathlib import Path
from typing import Any, Callable, Iterator, Optional, Sequence, Tuple

import numpy as np

from ehrnet_model.errors import EhrnetError

LIBRARIES = (
    "libcudart.so.13",
    "libcudart.so.12",
    "libcudart.so.11.0",
    "/usr/local/cuda/lib64/libcudart.so",
)
# Where pip's packages nvidia-cuda-runtime put it, which nothing else looks for.
_PACKAGED = (
    "nvidia/cu13/lib/libcudart.so.13",
    "nvidia/cuda_runtime/lib/libcudart.so.12",
)
_HOST_TO_DEVICE, _DEVICE_TO_HOST = 1, 2
_STREAM_NON_BLOCKING = 1
# Other threads may allocate memory while this one captures.
_CAPTURE_THIS_THREAD = 1
_CAPABILITY_MAJOR, _CAPABILITY_MINOR, _MULTIPROCESSORS, _INTEGRATED = 75, 76, 16, 18
_OUT_OF_MEMORY, _INSUFFICIENT_DRIVER = 2, 35
_ALLOCATIONS = ("cudaMalloc", "cudaHostAlloc")
# CUDA says of these that the process must be ended and started anew: every later call fails.
_FATAL = frozenset({214, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 721, 999})
# A thread that waits for the GPU sleeps instead of keeping one of a robot's few cores busy.
_BLOCKING_SYNC = 4

_MEMINFO = Path("/proc/meminfo")

_log = logging.getLogger(__name__)

_pointer = ctypes.c_void_p
_out_pointer = ctypes.POINTER(ctypes.c_void_p)
_out_int = ctypes.POINTER(ctypes.c_int)
_out_size = ctypes.POINTER(ctypes.c_size_t)
# Without argument types ctypes would cut pointers and sizes to 32 bits.
_ARGUMENTS = {
    "cudaGetDeviceCount": (_out_int,),
    "cudaSetDeviceFlags": (ctypes.c_uint,),
    "cudaSetDevice": (ctypes.c_int,),
    "cudaDeviceGetAttribute": (_out_int, ctypes.c_int, ctypes.c_int),
    "cudaMemGetInfo": (_out_size, _out_size),
    "cudaMalloc": (_out_pointer, ctypes.c_size_t),
    "cudaFree": (_pointer,),
    "cudaHostAlloc": (_out_pointer, ctypes.c_size_t, ctypes.c_uint),
    "cudaFreeHost": (_pointer,),
    "cudaMemcpyAsync": (_pointer, _pointer, ctypes.c_size_t, ctypes.c_int, _pointer),
    "cudaStreamCreateWithFlags": (_out_pointer, ctypes.c_uint),
    "cudaStreamSynchronize": (_pointer,),
    "cudaStreamDestroy": (_pointer,),
    "cudaStreamBeginCapture": (_pointer, ctypes.c_int),
    "cudaStreamEndCapture": (_pointer, _out_pointer),
    "cudaGraphInstantiateWithFlags": (_out_pointer, _pointer, ctypes.c_ulonglong),
    "cudaGraphDestroy": (_pointer,),
    "cudaGraphLaunch": (_pointer, _pointer),
    "cudaGraphExecDestroy": (_pointer,),
    "cudaGetLastError": (),
}


class OutOfDeviceMemory(EhrnetError):
    """The GPU's memory does not suffice now; it may later, and nothing is wrong with the engine."""


class DeviceLost(EhrnetError):
    """The GPU answers nothing to this process any more; only a new one can go on."""


class Cuda:
    """The newest CUDA runtime library of this machine that its driver suffices for, device 0.

    Args:
        library: this one; default: the first of LIBRARIES that will do.

    Raises:
        OutOfDeviceMemory: what an allocation raises.
        DeviceLost: what every call raises once a kernel has failed.
        EhrnetError: no library, no driver or no device; every later call raises it with CUDA's
            own words for what went wrong. What gives something back never raises: after an error
            everything fails, and the first one is the cause.
    """

    def __init__(self, library: Optional[str] = None) -> None:
        names = (*LIBRARIES, *_packaged()) if library is None else (library,)
        refused: Optional[EhrnetError] = None
        for self._library in _loaded(names):
            try:
                self._declare()
            except AttributeError as error:
                refused = refused or EhrnetError(
                    f"the CUDA library {self._library._name} is too old ({error}): CUDA 11.4 or "
                    "later is needed, or use runtime onnxruntime."
                )
                continue
            count = ctypes.c_int()
            code = self._library.cudaGetDeviceCount(ctypes.byref(count))
            if code != _INSUFFICIENT_DRIVER:
                break
            refused = refused or self._error("cudaGetDeviceCount", code)
        else:
            raise refused or _not_there(names)
        if code:
            raise self._error("cudaGetDeviceCount", code)
        if count.value < 1:
            raise EhrnetError("no CUDA device is there: use runtime onnxruntime on this machine.")
        code = self._library.cudaSetDeviceFlags(_BLOCKING_SYNC)
        if code:  # another library of this process was first
            _log.debug("cudaSetDeviceFlags failed with error %d.", code)
        self._call("cudaSetDevice", 0)

    def _declare(self) -> None:
        for name, arguments in _ARGUMENTS.items():
            function = getattr(self._library, name)
            function.argtypes, function.restype = arguments, ctypes.c_int
        self._library.cudaGetErrorString.argtypes = (ctypes.c_int,)
        self._library.cudaGetErrorString.restype = ctypes.c_char_p

    def compute_capability(self) -> str:
        """Such as ``8.7``; engines are built for one."""
        return f"{self._attribute(_CAPABILITY_MAJOR)}.{self._attribute(_CAPABILITY_MINOR)}"

    def multiprocessors(self) -> int:
        """How many the device has switched on."""
        return self._attribute(_MULTIPROCESSORS)

    def device_name(self) -> str:
        """Such as ``Orin``, from the driver's library; the runtime's structure for it changes."""
        text = ctypes.create_string_buffer(256)
        device = ctypes.c_int()
        driver = next(_loaded(("libcuda.so.1",)), None)
        if driver is None:
            raise _not_there(("libcuda.so.1",))
        code = (
            driver.cuInit(ctypes.c_uint(0))
            or driver.cuDeviceGet(ctypes.byref(device), ctypes.c_int(0))
            or driver.cuDeviceGetName(text, ctypes.c_int(len(text)), device)
        )
        if code:
            raise EhrnetError(
                f"the CUDA driver does not name its device (error {code}): check it with "
                "nvidia-smi or tegrastats, or use runtime onnxruntime."
            )
        return text.value.decode(errors="replace")

    def free_memory(self) -> int:
        """Bytes of device memory that can be had.

        A Jetson's GPU shares the system's memory. CUDA counts there only what nobody uses, which
        soon is little: the system keeps copies of files in the rest and gives it back when asked.
        """
        free = self.unused_memory()
        if not self._attribute(_INTEGRATED):
            return free
        try:
            said = re.search(r"MemAvailable:\s*(\d+) kB", _MEMINFO.read_text())
        except (OSError, ValueError):
            return free
        return max(free, int(said.group(1)) << 10) if said else free

    def unused_memory(self) -> int:
        """Bytes of device memory that hold nothing at all, by cudaMemGetInfo."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._call("cudaMemGetInfo", ctypes.byref(free), ctypes.byref(total))
        return free.value

    def create_stream(self) -> int:
        """A stream of its own: on the default one TensorRT waits for everything."""
        stream = ctypes.c_void_p()
        self._call("cudaStreamCreateWithFlags", ctypes.byref(stream), _STREAM_NON_BLOCKING)
        return stream.value or 0

    def synchronize(self, stream: int) -> None:
        """Waits until everything in the stream is done."""
        self._call("cudaStreamSynchronize", stream)

    def destroy_stream(self, stream: int) -> None:
        """Gives a stream back."""
        self._free("cudaStreamDestroy", stream)

    def capture(self, stream: int, enqueue: Callable[[], None]) -> int:
        """What ``enqueue`` puts into the stream, as a graph that starts with one call.

        Nothing of it runs. The stream is as before, also when this raises EhrnetError.
        """
        graph, made = ctypes.c_void_p(), ctypes.c_void_p()
        try:
            self._call("cudaStreamBeginCapture", stream, _CAPTURE_THIS_THREAD)
            try:
                enqueue()
            except BaseException:
                self._library.cudaStreamEndCapture(stream, ctypes.byref(graph))
                raise
            self._call("cudaStreamEndCapture", stream, ctypes.byref(graph))
            self._call("cudaGraphInstantiateWithFlags", ctypes.byref(made), graph, 0)
        except BaseException:
            # CUDA remembers an error until it is asked; TensorRT would take it for its own.
            self._library.cudaGetLastError()
            raise
        finally:
            if graph:
                self._free("cudaGraphDestroy", graph)
        return made.value or 0

    def launch(self, graph: int, stream: int) -> None:
        """Starts a captured graph."""
        self._call("cudaGraphLaunch", graph, stream)

    def destroy_graph(self, graph: int) -> None:
        """Gives a captured graph back."""
        self._free("cudaGraphExecDestroy", graph)

    def _attribute(self, number: int) -> int:
        value = ctypes.c_int()
        self._call("cudaDeviceGetAttribute", ctypes.byref(value), number, 0)
        return value.value

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._library, name)(*arguments)
        if code:
            raise self._error(name, code)

    def _free(self, name: str, what: Any) -> None:
        code = getattr(self._library, name)(what)
        if code:
            _log.debug("%s failed with error %d.", name, code)

    def _error(self, name: str, code: int) -> EhrnetError:
        text = self._library.cudaGetErrorString(code)
        said = f"CUDA's {name} failed with error {code} ({text.decode() if text else 'unknown'})"
        if is_fatal(code):
            return DeviceLost(f"{said}: this process cannot use the GPU any more, start it again.")
        if code == _OUT_OF_MEMORY or name in _ALLOCATIONS:
            return OutOfDeviceMemory(f"{said}: end other processes or use a smaller variant.")
        return EhrnetError(
            f"{said}: check the driver with nvidia-smi or tegrastats, or use runtime onnxruntime."
        )


class Buffer:
    """An array in pinned host memory and its twin on the device.

    Attributes:
        host: the numpy array, written or read by the caller.
        device: address on the device.

    Raises:
        OutOfDeviceMemory: there is not enough of it, and none is taken.
    """

    def __init__(self, cuda: Cuda, shape: Tuple[int, ...], dtype: Any) -> None:
        self._cuda = cuda
        self.nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self._host, self._device = ctypes.c_void_p(), ctypes.c_void_p()
        cuda._call("cudaHostAlloc", ctypes.byref(self._host), self.nbytes, 0)
        try:
            cuda._call("cudaMalloc", ctypes.byref(self._device), self.nbytes)
        except EhrnetError:
            cuda._free("cudaFreeHost", self._host)
            raise
        memory = (ctypes.c_uint8 * self.nbytes).from_address(self._host.value or 0)
        self.host = np.frombuffer(memory, dtype).reshape(shape)
        self.device = self._device.value or 0

    def upload(self, rows: int, stream: int) -> None:
        """Starts the copy of the first rows from host to device."""
        size = self._bytes(rows)
        self._cuda._call("cudaMemcpyAsync", self._device, self._host, size, _HOST_TO_DEVICE, stream)

    def download(self, rows: int, stream: int) -> None:
        """Starts the copy of the first rows from device to host."""
        size = self._bytes(rows)
        self._cuda._call("cudaMemcpyAsync", self._host, self._device, size, _DEVICE_TO_HOST, stream)

    def _bytes(self, rows: int) -> int:
        return self.nbytes // len(self.host) * rows

    def free(self) -> None:
        """Both memories are gone afterwards; ``host`` must not be touched."""
        self.host = np.empty(0)
        device, self._device = self._device, ctypes.c_void_p()
        host, self._host = self._host, ctypes.c_void_p()
        self._cuda._free("cudaFree", device)
        self._cuda._free("cudaFreeHost", host)


def is_fatal(code: int) -> bool:
    """Whether after this error of CUDA's only a new process can use the GPU."""
    return code in _FATAL


def _packaged() -> Iterator[str]:
    """CUDA runtime libraries that pip has installed for this Python."""
    for folder in sys.path:
        for name in _PACKAGED:
            file = Path(folder) / name
            if file.is_file():
                yield str(file)


def _loaded(names: Sequence[str]) -> Iterator[ctypes.CDLL]:
    """Those of the libraries that are there, one after the other."""
    for name in names:
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        yield library


def _not_there(names: Sequence[str]) -> EhrnetError:
    return EhrnetError(
        f"the CUDA runtime library is not there (tried {', '.join(names)}): install CUDA, or use "
        "runtime onnxruntime."
    )
