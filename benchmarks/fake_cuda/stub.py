"""Makes torch believe in one CUDA device that does nothing: a stub of the CUDA runtime, built by gcc.

Autograd, pinned memory, streams and events call the runtime even for tensors without data. The stub answers
them, allocates pinned memory by malloc, and computes nothing.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCES = HERE / "runtime"
MARK = "TRUNKLINE_FAKE_CUDA"  # in the environment of processes that run with the stub


class NoStub(RuntimeError):
    """The stub cannot be built here; the message says why."""


def environment() -> dict[str, str]:
    """Return the environment of a process that runs with the stub, which is built where needed.

    Raises:
        NoStub: if there is no Linux, gcc or header of the CUDA runtime.
    """
    folder = _built()
    libraries = os.pathsep.join(filter(None, [str(folder), os.environ.get("LD_LIBRARY_PATH")]))
    preload = " ".join(filter(None, [str(folder / "libcudart_stub.so"), os.environ.get("LD_PRELOAD")]))
    return {
        **os.environ,
        MARK: "1",
        "LD_PRELOAD": preload,
        "LD_LIBRARY_PATH": libraries,
        "CUDA_VISIBLE_DEVICES": "0",
        "OMP_NUM_THREADS": "1",
    }


def restart_with_stub() -> None:
    """Start this program anew with the stub, unless it runs with it already; before torch is imported.

    Raises:
        NoStub: as :func:`environment`.
    """
    if os.environ.get(MARK) != "1":
        os.execve(sys.executable, [sys.executable, *sys.argv], environment())


def _built() -> Path:
    """Build the libraries in the user's cache folder, once for each state of their sources."""
    if not sys.platform.startswith("linux"):
        raise NoStub(f"the stub of the CUDA runtime is for Linux, not {sys.platform}")
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise NoStub("there is no gcc to build the stub of the CUDA runtime with")
    packages = Path(sysconfig.get_paths()["purelib"]) / "nvidia"
    headers = sorted(packages.glob("*/include/cuda_runtime_api.h"))
    if not headers:
        raise NoStub(f"{packages} has no cuda_runtime_api.h; torch was built without CUDA")
    parts = [*sorted(SOURCES.rglob("*.[ch]")), headers[-1]]
    digest = hashlib.sha256(b"".join(part.read_bytes() for part in parts)).hexdigest()[:16]
    folder = _cache() / f"fake_cuda-{digest}"
    if (folder / "libcuda.so.1").exists():
        return folder
    with tempfile.TemporaryDirectory(dir=folder.parent) as made:
        base = [compiler, "-shared", "-fPIC", "-O1", "-w", f"-I{SOURCES}", f"-I{headers[-1].parent}"]
        _run([*base, "-o", f"{made}/libcudart_stub.so", str(SOURCES / "cudart.c")])
        _run([*base, "-Wl,-soname,libcuda.so.1", "-o", f"{made}/libcuda.so.1", str(SOURCES / "cuda.c")])
        folder.mkdir(exist_ok=True)
        for name in ("libcudart_stub.so", "libcuda.so.1"):  # the one that is looked for comes last
            os.replace(f"{made}/{name}", folder / name)
    return folder


def _cache() -> Path:
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trunkline"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NoStub(f"{folder} cannot be made ({error}); set XDG_CACHE_HOME") from error
    return folder


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise NoStub(f"{' '.join(command)} failed: {done.stderr.strip()[:500]}")
