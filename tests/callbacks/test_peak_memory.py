"""What is said about memory at the end of a run."""

import re
from types import SimpleNamespace

import pytest
import torch

import callbacks.peak_memory


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("cpu", r"peak memory of the process: [1-9][\d,]+ MB"),
        ("cuda:1", r".* on cuda:1: 50 MB"),
    ],
)
def test_of_the_gpu_or_of_the_process(monkeypatch, device, expected):
    said = []
    monkeypatch.setattr(callbacks.peak_memory, "say", said.append)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: device.index * 50e6)
    trainer = SimpleNamespace(
        is_global_zero=True, strategy=SimpleNamespace(root_device=torch.device(device))
    )
    callbacks.peak_memory.PeakMemory().teardown(trainer, None, "fit")
    assert re.fullmatch(expected, said[0].strip())
