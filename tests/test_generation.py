"""Generation: the cache changes nothing, rows are independent, it ends where it must."""

import copy

import pytest
import torch
from conftest import refused

from gpt2.generation import (
    PromptTooLong,
    SamplingSettings,
    choose_tokens,
    generate,
    generate_steps,
    keep_top_k,
)
from gpt2.heads import LanguageModelHead
from gpt2.model import GPT2, GPT2Config, KeyValueCache

NEVER = -1  # a stop token that no row meets
PROMPTS = [[5, 6, 7, 8, 9], [1], [20, 21, 22]]


@pytest.fixture(scope="module")
def model():
    config = GPT2Config(n_layer=3, n_head=2, n_embd=32, n_positions=40, vocab_size=61)
    torch.manual_seed(0)
    model = GPT2(config, LanguageModelHead(config)).eval()
    with torch.no_grad():  # rough weights: answers that vary and depend on what came before
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return model


@torch.no_grad()
def without_cache(model, prompt, count, penalty=1.0, of_prompt=False):
    """The plain way: the whole text through the model for every token."""
    tokens = list(prompt)
    for _ in range(count):
        logits = model(torch.tensor([tokens]), torch.tensor([len(tokens)]))[0, -1]
        for seen in set(tokens if of_prompt else tokens[len(prompt) :]):
            logits[seen] *= penalty if logits[seen] < 0 else 1 / penalty
        tokens.append(int(logits.argmax()))
    return tokens[len(prompt) :]


def test_cached_and_uncached_agree_token_for_token(model):
    answers = generate(model, PROMPTS, SamplingSettings(max_new_tokens=30), NEVER)
    assert len({tuple(answer) for answer in answers}) == 3
    assert len(set(answers[0])) > 3
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        assert answer == without_cache(model, prompt, 30)


def test_the_cache_is_in_the_arithmetic_of_the_model(model):
    """Under autocast float32 weights compute in bfloat16, and float64 ones in float64."""
    for weights, arithmetic in ((torch.float32, torch.bfloat16), (torch.float64, torch.float64)):
        copied = copy.deepcopy(model).to(weights)
        with torch.autocast("cpu", torch.bfloat16):
            cache = KeyValueCache(model.config, 1, 8, like=copied.wte.weight)
            answers = generate(copied, PROMPTS, SamplingSettings(max_new_tokens=6), NEVER)
        assert cache.keys.dtype == cache.values.dtype == arithmetic
        assert [len(answer) for answer in answers] == [6, 6, 6]
    assert answers == generate(copied, PROMPTS, SamplingSettings(max_new_tokens=6), NEVER)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_batch_agrees_with_its_rows_one_by_one(model, temperature):
    settings = SamplingSettings(max_new_tokens=20, temperature=temperature, top_k=10, top_p=0.9)
    together = generate(model, PROMPTS, settings, NEVER, seeds=[3, 4, 5])
    for row, prompt in enumerate(PROMPTS):
        assert generate(model, [prompt], settings, NEVER, seeds=[3 + row]) == [together[row]]


def test_greedy_text_equals_transformers(model):
    from test_model import to_transformers, transformers_config
    from transformers import GPT2LMHeadModel

    reference = to_transformers(model, GPT2LMHeadModel(transformers_config(model.config)))
    theirs = reference.generate(
        torch.tensor([PROMPTS[0]]), max_new_tokens=25, do_sample=False, eos_token_id=None,
        pad_token_id=0,
    )[0, 5:]  # fmt: skip
    assert generate(model, PROMPTS[:1], SamplingSettings(max_new_tokens=25), NEVER) == [
        theirs.tolist()
    ]


def test_a_row_ends_with_the_stop_token_and_others_go_on(model):
    settings = SamplingSettings(max_new_tokens=30)
    whole = generate(model, PROMPTS, settings, NEVER)
    stop = whole[0][4]
    stopped = generate(model, PROMPTS, settings, stop)
    for before, after in zip(whole, stopped, strict=True):
        expected = before[: before.index(stop) + 1] if stop in before else before
        assert after == expected
    assert len(stopped[0]) <= 5


def test_generation_never_runs_past_the_context(model):
    """Rows fill the context at different steps; each ends there, the shorter ones go on."""
    answers = generate(model, PROMPTS, SamplingSettings(max_new_tokens=100), NEVER)
    assert [len(p) + len(a) for p, a in zip(PROMPTS, answers, strict=True)] == [40, 40, 40]
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        assert answer == without_cache(model, prompt, len(answer))


@pytest.mark.parametrize("length", [40, 41])
def test_a_prompt_that_fills_the_context_is_refused(model, length):
    with pytest.raises(PromptTooLong, match=f"{length} tokens .* context of 40"):
        generate(model, [[1], [2] * length], SamplingSettings(), NEVER)
    assert len(generate(model, [[2] * 39], SamplingSettings(), NEVER)[0]) == 1


def test_tokens_stream_one_by_one(model):
    settings = SamplingSettings(max_new_tokens=6)
    steps = generate_steps(model, PROMPTS[:1], settings, NEVER)
    first = next(steps)
    assert [first, *steps] == [
        [token] for token in generate(model, PROMPTS[:1], settings, NEVER)[0]
    ]


def choose(logits, seed=0, seen=(), **settings):
    seen_mask = torch.zeros(1, len(logits), dtype=torch.bool)
    seen_mask[0, list(seen)] = True
    generators = [torch.Generator().manual_seed(seed)]
    return int(
        choose_tokens(torch.tensor([logits]), seen_mask, SamplingSettings(**settings), generators)
    )


def test_sampling_settings():
    logits = [2.0, 1.9, 1.0, -1.0]
    assert choose(logits) == 0
    draws = {choose(logits, seed, temperature=1.0) for seed in range(300)}
    assert draws == {0, 1, 2, 3}
    assert {choose(logits, seed, temperature=1.0, top_k=2) for seed in range(100)} == {0, 1}
    assert {choose(logits, seed, temperature=1.0, top_p=0.5) for seed in range(100)} == {0, 1}
    assert {choose(logits, seed, temperature=1.0, top_p=0.01) for seed in range(20)} == {0}
    assert {choose(logits, seed, temperature=1.0, top_p=1e-50) for seed in range(20)} == {0}
    assert {choose(logits, seed, temperature=0.01) for seed in range(20)} == {0}
    draws = [choose(logits, seed, temperature=1.0) for seed in range(3000)]
    expected = torch.tensor(logits).softmax(0)[0].item()
    assert draws.count(0) / 3000 == pytest.approx(expected, abs=0.03)


def test_the_repetition_penalty_lowers_positive_and_negative_logits():
    assert choose([2.0, 1.9], seen=[0], repetition_penalty=1.5) == 1
    assert choose([-1.0, -1.1], seen=[0], repetition_penalty=1.5) == 1
    assert choose([2.0, 1.9], seen=[1], repetition_penalty=1.5) == 0


@pytest.mark.parametrize("penalty", ["1e-50", "0", "1e50"])
def test_a_penalty_that_no_float_can_follow_is_refused(call_script, penalty):
    ended = call_script("instruction/respond.py", "RUN", "Hi", "--repetition-penalty", penalty)
    refused(ended, "--repetition-penalty", "at least 0.01 and at most 100")
    for bound in (0.01, 100.0):
        assert choose([90.0, -90.0], seen=[0, 1], temperature=1e-5, repetition_penalty=bound) == 0


def test_the_penalty_is_for_what_a_row_generates_itself_and_not_for_its_prompt(model):
    """Nor for another row's tokens, nor for pads."""
    # Pads are token 0; give it the place of token 4, which this model says most.
    model = copy.deepcopy(model)
    with torch.no_grad():
        model.wte.weight[[0, 4]] = model.wte.weight[[4, 0]]
    settings = SamplingSettings(max_new_tokens=34, repetition_penalty=1.7)
    answers = generate(model, PROMPTS, settings, NEVER)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        assert answer == without_cache(model, prompt, len(answer), penalty=1.7)
        assert generate(model, [prompt], settings, NEVER) == [answer]
        assert 0 not in prompt and 0 in answer[:4]
        assert answer != without_cache(model, prompt, len(answer))
    # and with more of a prompt, which the model goes on with
    prompts = [prompt + answer[:4] for prompt, answer in zip(PROMPTS, answers, strict=True)]
    settings.max_new_tokens = 25
    for prompt, answer in zip(prompts, generate(model, prompts, settings, NEVER), strict=True):
        assert answer == without_cache(model, prompt, 25, penalty=1.7)
        assert answer != without_cache(model, prompt, 25, penalty=1.7, of_prompt=True)


def test_the_penalty_is_that_of_transformers_without_the_prompt(model):
    from test_model import to_transformers, transformers_config
    from transformers import GPT2LMHeadModel, RepetitionPenaltyLogitsProcessor

    reference = to_transformers(model, GPT2LMHeadModel(transformers_config(model.config)))
    settings = SamplingSettings(max_new_tokens=25, repetition_penalty=1.2)
    found = generate(model, PROMPTS, settings, NEVER)
    for prompt, answer in zip(PROMPTS, found, strict=True):
        theirs = reference.generate(
            torch.tensor([prompt]), max_new_tokens=25, do_sample=False, eos_token_id=None,
            pad_token_id=0,
            logits_processor=[RepetitionPenaltyLogitsProcessor(1.2, len(prompt))],
        )  # fmt: skip
        assert answer == theirs[0, len(prompt) :].tolist()


def test_a_token_is_drawn_as_torch_draws_it():
    """Without torch.multinomial, which waits for a GPU."""
    torch.manual_seed(0)
    logits, seen = torch.randn(4, 50), torch.zeros(4, 50, dtype=torch.bool)
    generators = [[torch.Generator().manual_seed(seed) for seed in range(4)] for _ in range(2)]
    sampling = SamplingSettings(temperature=0.7, top_k=5)
    chosen = choose_tokens(logits, seen, sampling, generators[0])
    probabilities = keep_top_k(logits / 0.7, 5).softmax(dim=1)
    for row, generator, token in zip(probabilities, generators[1], chosen, strict=True):
        assert torch.multinomial(row, 1, generator=generator) == token
