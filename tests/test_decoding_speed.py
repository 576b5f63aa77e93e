"""The comparison of decoding with and without a cache compares like with like."""

import torch
from conftest import refused

from benchmarks.decoding_speed import NEVER, generate_without_cache
from gpt2.generation import SamplingSettings, generate
from gpt2.heads import LanguageModelHead
from gpt2.model import GPT2, GPT2Config

SCRIPT = "benchmarks/decoding_speed.py"


def test_both_ways_give_the_same_tokens():
    config = GPT2Config(n_layer=2, n_head=2, n_embd=32, n_positions=40, vocab_size=61)
    torch.manual_seed(0)
    model = GPT2(config, LanguageModelHead(config)).eval()
    with torch.no_grad():  # rough weights: tokens that vary
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    prompts = [[5, 6, 7], [20, 21, 22]]
    tokens = generate_without_cache(model, prompts, 30)
    assert len(set(tokens[0])) > 3 and tokens[0] != tokens[1]
    assert tokens == generate(model, prompts, SamplingSettings(max_new_tokens=30), NEVER)


def test_the_script_times_both_and_refuses_what_does_not_fit(call_script):
    done = call_script(SCRIPT, "--model", "mini", "--new-tokens", 3, "--repeats", 2)
    assert done.returncode == 0, done.stderr
    assert "pair 2: without cache" in done.stdout and "(median of 2 pairs" in done.stdout
    refused(call_script(SCRIPT, "--model", "mini", "--new-tokens", 500), "context of 512")
