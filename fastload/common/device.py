"""Resolve a device by its name, or say why it cannot be used: torch, the driver, or a missing part of fastload."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
from pathlib import Path

import torch

from fastload.common.install import install_command
from fastload.errors import UsageError

LEAST_DRIVERS = {"12": 525, "13": 580}
"""The first driver that runs programs built for a major version of CUDA (by NVIDIA's minor version compatibility)."""

_DRIVER_FILE = Path("/proc/driver/nvidia/version")


def resolve_device(device: str | torch.device) -> torch.device:
    """Return the device with its index; raise UsageError, saying what is missing, where it cannot be had."""
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise UsageError(f"device={device!r} is no device; it is 'cpu', 'cuda' or 'cuda:N'") from error
    if resolved.type == "cpu":
        return resolved
    if resolved.type != "cuda":
        raise UsageError(f"device={device!r}; fastload feeds 'cpu' and 'cuda' only")
    why = why_no_cuda()
    if why is not None:
        raise UsageError(f"device={str(device)!r} was asked for, but {why}; device='cpu' works without")
    index = torch.cuda.current_device() if resolved.index is None else resolved.index
    if index >= torch.cuda.device_count():
        raise UsageError(
            f"device={str(device)!r} was asked for, but there are {torch.cuda.device_count()} CUDA devices"
        )
    return torch.device("cuda", index)


def why_no_cuda() -> str | None:
    """Return why torch has no CUDA device here, and the mend, in one clause; None where it has one."""
    built_for = torch.version.cuda
    if built_for is None:
        kind = "is built for ROCm" if torch.version.hip else "is a CPU build"
        return f"this torch ({torch.__version__}) {kind}: install one that is built for CUDA"
    if torch.cuda.is_available():
        return None
    driver, least = driver_version(), LEAST_DRIVERS.get(built_for.split(".")[0])
    if driver is None:
        wanted = f", version {least} or newer" if least else ""
        return (
            f"no NVIDIA driver is found (this torch is built for CUDA {built_for}): install one{wanted}, "
            "or pass the GPU into this container"
        )
    major = int(driver.split(".")[0])
    if least and major < least:
        other = f", or {install_command('cuda12')}" if LEAST_DRIVERS["12"] <= major else ""
        return (
            f"the NVIDIA driver {driver} is too old for CUDA {built_for}, for which this torch is built: "
            f"update the driver to {least} or newer{other}"
        )
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None:
        return f"CUDA_VISIBLE_DEVICES={hidden!r} leaves torch no CUDA device: unset it, or name one that is there"
    return (
        f"torch (built for CUDA {built_for}) finds no CUDA device, though there is the NVIDIA driver {driver}"
        f"{_torch_s_words()}: see what nvidia-smi says"
    )


def driver_version() -> str | None:
    """Return the version of NVIDIA's driver, such as "580.65.06", without starting CUDA; None where there is none."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        found = re.search(r"Kernel Module.*?\s(\d+\.[\d.]+)", _DRIVER_FILE.read_text())
        if found:
            return found[1]
    return _version_by_nvml()


def _version_by_nvml() -> str | None:
    """Ask NVIDIA's management library, which is there where the kernel module has no file in /proc (WSL)."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        text = ctypes.create_string_buffer(96)
        if nvml.nvmlInit_v2() != 0:
            return None
        found = nvml.nvmlSystemGetDriverVersion(text, ctypes.c_uint(len(text))) == 0
        nvml.nvmlShutdown()
    except (OSError, AttributeError):
        return None
    version = text.value.decode("ascii", "replace")
    return version if found and re.match(r"\d+\.", version) else None


def _torch_s_words() -> str:
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return f" ({' '.join(str(error).split())})"
    return ""
