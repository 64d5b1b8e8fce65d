"""What a GPU's driver, Triton and a C compiler do in a worker, tried there one by one; prints which of it is refused.

    python -m vortexlab.evaluator.confine LIMITS driver_needs
"""

import ctypes
import json
import mmap
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path


def memory_of_drivers() -> None:
    descriptor = os.memfd_create("cuda")
    os.ftruncate(descriptor, 1 << 20)
    mmap.mmap(descriptor, 1 << 20).close()
    os.close(descriptor)


def abstract_socket() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as found:
        address = f"\1\0\0cuda-uvmfd-{os.getpid()}".encode()  # past Python's audit hook, as a driver goes
        libc = ctypes.CDLL(None)
        if libc.bind(found.fileno(), address, len(address)) or libc.listen(found.fileno(), 1):
            raise OSError("not bound")


def looks_for_a_daemon() -> None:
    """Multi-process service: a driver goes on without when nobody is found, and fails on another error."""
    libc = ctypes.CDLL(None, use_errno=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as found:
        address = b"\1\0/tmp/nvidia-mps/control\0"
        if libc.connect(found.fileno(), address, len(address)) == 0 or ctypes.get_errno() != 2:
            raise OSError(f"error {ctypes.get_errno()} instead of 2")


def device_file() -> None:
    with open("/dev/null", "r+b", 0) as file:
        file.write(b"x")


def driver_cache() -> None:
    folder = Path.home() / ".nv" / "ComputeCache"
    folder.mkdir(parents=True)
    for _ in range(2):
        (folder / "index").write_bytes(b"x" * 4096)


def kernel_cache() -> None:
    """A file that is made in one folder, moved to another and made executable."""
    folder = Path(os.environ["TRITON_CACHE_DIR"])
    (folder / "tmp").mkdir(parents=True)
    (folder / "key").mkdir()
    (folder / "tmp" / "a.so").write_bytes(b"x")
    os.replace(folder / "tmp" / "a.so", folder / "key" / "a.so")
    os.chmod(folder / "key" / "a.so", 0o700)
    os.rmdir(folder / "tmp")


def compiler() -> None:
    Path("launcher.c").write_text("int answer(void) { return 42; }\n")
    command = ["cc", "-shared", "-fPIC", "-O1", "launcher.c", "-o", "launcher.so"]
    subprocess.run(command, check=True, capture_output=True)
    if ctypes.CDLL("./launcher.so").answer() != 42:
        raise OSError("no answer")


def facts() -> None:
    for name in ("/proc/self/maps", "/proc/devices", "/proc/meminfo", "/sys/devices/system/cpu/online"):
        with open(name, "rb") as file:
            file.read(1)


def names_threads() -> None:
    """A driver writes the names of its own threads as files, and fails where it may not."""
    with open(f"/proc/self/task/{threading.get_native_id()}/comm", "w") as file:
        file.write("cuda-EvtHandlr")


def many_threads() -> None:
    threads = [threading.Thread(target=lambda: None, name="cuda-EvtHandlr") for _ in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def much_address_space() -> None:
    reserved = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000  # MAP_NORESERVE
    mmap.mmap(-1, 1 << 40, flags=reserved, prot=mmap.PROT_READ).close()


NEEDS: tuple[Callable[[], None], ...] = (
    memory_of_drivers, abstract_socket, looks_for_a_daemon, device_file, driver_cache, kernel_cache, facts,
    names_threads, many_threads, much_address_space, *([compiler] if shutil.which("cc") else []),
)  # fmt: skip

if __name__ == "__main__":
    refused = {}
    for need in NEEDS:
        try:
            need()
        except (OSError, subprocess.SubprocessError) as error:
            refused[need.__name__] = str(error)
    json.dump({"refused": refused, "walls": os.environ["VORTEX_WALLS"].split()}, sys.stdout)
