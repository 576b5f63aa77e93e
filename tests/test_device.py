"""What some versions of torch compute wrongly on some devices is refused, not computed."""

import pytest
import torch
from torch.torch_version import TorchVersion

from gpt2.support import distributed
from gpt2.support.device import choose_device
from gpt2.support.distributed import to_device
from gpt2.support.errors import UserError


@pytest.mark.parametrize("version, found", [("2.12.1", "cpu"), ("2.13.0+cpu", "mps")])
def test_apples_gpus_need_a_torch_whose_attention_is_right_there(version, found, monkeypatch):
    monkeypatch.setattr(torch, "__version__", TorchVersion(version))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("auto").type == found
    if found == "cpu":
        with pytest.raises(UserError, match=r"older than 2\.13"):
            choose_device("mps")


def test_sharding_on_cpus_needs_a_torch_that_averages_there(monkeypatch):
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.8.0"))
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with pytest.raises(UserError, match=r"needs torch 2\.13"):
        to_device(torch.nn.Linear(2, 2), torch.device("cpu"), shard=True)


def test_a_gpu_multiplies_float32_in_tf32_and_a_cpu_does_not(monkeypatch):
    before = torch.get_float32_matmul_precision()
    try:
        for there, precision in ((False, "highest"), (True, "high")):
            torch.set_float32_matmul_precision("highest")
            monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
            choose_device("auto")
            assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)
