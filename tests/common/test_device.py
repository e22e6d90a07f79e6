"""Where there is no CUDA device the error says why (torch's build, the driver, the environment) and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fastload.common import device, install
from fastload.common.device import driver_version, resolve_device, why_no_cuda
from fastload.errors import UsageError

PROPRIETARY = """\
NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024
GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)
"""
OPEN = """\
NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (builder)  Sun Jul 27 07:05:59 2025
GCC version:
"""


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A machine whose torch, built for `cuda`, finds no device beside the driver that /proc tells of."""

    def make(cuda: str | None, driver: str | None, version: str = "2.13.0") -> None:
        monkeypatch.setattr(torch, "__version__", version)
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        file = tmp_path / "version"
        if driver is not None:
            file.write_text(driver)
        monkeypatch.setattr(device, "_DRIVER_FILE", file)
        monkeypatch.setattr(device.ctypes, "CDLL", no_library)

    return make


def no_library(name: str) -> None:
    raise OSError(f"{name}: cannot open shared object file")


def test_the_driver_s_version_is_read_from_both_kinds_of_kernel_module(machine) -> None:
    machine("13.0", PROPRIETARY)
    assert driver_version() == "550.54.15"
    machine("13.0", OPEN)
    assert driver_version() == "580.65.06"


def test_without_the_kernel_module_s_file_nvml_is_asked(machine, monkeypatch: pytest.MonkeyPatch) -> None:
    class Nvml:
        def nvmlInit_v2(self) -> int:
            return 0

        def nvmlSystemGetDriverVersion(self, text, length) -> int:
            text.value = b"576.02"
            return 0

        def nvmlShutdown(self) -> int:
            return 0

    machine("12.8", None)
    assert driver_version() is None
    monkeypatch.setattr(device.ctypes, "CDLL", lambda name: Nvml())
    assert driver_version() == "576.02"


def test_a_cpu_build_is_named_with_its_version(machine) -> None:
    machine(None, PROPRIETARY, "2.13.0+cpu")
    with pytest.raises(
        UsageError, match=r"device='cuda:1' was asked for, but this torch \(2.13.0\+cpu\) is a CPU build"
    ):
        resolve_device("cuda:1")


def test_a_driver_that_is_too_old_is_not_told_as_no_device(machine) -> None:
    machine("13.0", PROPRIETARY)
    why = why_no_cuda()
    assert why is not None and "no CUDA device" not in why
    assert "driver 550.54.15 is too old for CUDA 13.0" in why and "580 or newer" in why
    assert install.install_command("cuda12") in why  # what this driver can run


def test_a_driver_too_old_for_every_extra_can_only_be_updated(machine) -> None:
    machine("12.8", PROPRIETARY.replace("550.54.15", "470.256.02"))
    why = why_no_cuda()
    assert why is not None and "470.256.02 is too old for CUDA 12.8" in why and "pip install" not in why


def test_no_driver_at_all_is_said_with_the_one_that_is_wanted(machine) -> None:
    machine("13.0", None)
    assert "no NVIDIA driver is found (this torch is built for CUDA 13.0): install one, version 580" in str(
        why_no_cuda()
    )


def test_hidden_devices_are_told_by_the_variable(machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine("13.0", OPEN)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "CUDA_VISIBLE_DEVICES='' leaves torch no CUDA device" in str(why_no_cuda())


def test_a_device_that_torch_cannot_start_is_told_in_torch_s_words(machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def init() -> None:
        raise RuntimeError("Unexpected error from cudaGetDeviceCount().\nError 802: system not yet initialized")

    machine("13.0", OPEN)
    monkeypatch.setattr(torch.cuda, "init", init)
    why = str(why_no_cuda())
    assert "driver 580.65.06" in why and "(Unexpected error from cudaGetDeviceCount(). Error 802" in why
    assert "\n" not in why
