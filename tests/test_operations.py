"""Where a training step spends its time: groups of operations, and the script that shows them."""

from conftest import refused

from benchmarks.operations import group_of, profiled
from gpt2.model import SIZES, GPT2Config

TINY = GPT2Config(n_layer=2, n_head=2, n_embd=64, n_positions=64, vocab_size=100)
SCRIPT = "benchmarks/operations.py"


def test_operations_fall_into_their_groups():
    names = {
        "aten::mm": "matrix products",
        "aten::addmm": "matrix products",
        "aten::gelu_backward": "GELU",
        "aten::_softmax_backward_data": "softmax",
        "aten::native_layer_norm": "norms",
        "aten::add_": "sums",
        "aten::addcmul_": "the rest",
        "AddmmBackward0": "the rest",
    }
    assert {name: group_of(name) for name in names} == names


def test_flops_are_those_of_the_matrix_products():
    found = profiled(3, config=TINY, rows=4, length=32, precision="float32", device="cpu")
    # 12 C^2 weights a block, 6 FLOPs a token and weight; the head sees one vector of each row
    blocks = 2 * 12 * 64**2 * 6 * 4 * 32
    assert abs(found["matrix products"][1] / blocks - 1) < 0.01
    assert all(seconds > 0 for seconds, _ in found.values())
    assert found["GELU"][1] == 0


def test_the_script_prints_a_table(call_script, monkeypatch):
    monkeypatch.setitem(SIZES, "mini", TINY)
    done = call_script(SCRIPT, "--model", "mini", "--max-length", 32, "--batch-size", 2)
    assert done.returncode == 0, done.stderr
    assert "| matrix products" in done.stdout and "mini, 2 rows of 32 tokens" in done.stdout
    refused(call_script(SCRIPT, "--model", "mini", "--max-length", 65), "--max-length 65")
