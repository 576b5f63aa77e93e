"""The comparison with transformers and TRL: all contenders do the same work, and are counted so."""

import dataclasses
import importlib.util

import pytest
import torch
from conftest import refused
from torch.optim.optimizer import _global_optimizer_post_hooks
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import contenders, measuring, savings, throughput
from benchmarks.measuring import Measured
from benchmarks.tasks import OURS, OURS_COMPILED, TASKS, Contender
from benchmarks.throughput import compare, ratios
from benchmarks.workload import Job, ThroughputSettings, Work, prepare, tokens_to_run, useful_work
from gpt2.heads import LanguageModelHead
from gpt2.model import GPT2, MLP, SIZES, GPT2Config
from gpt2.support.device import DeviceSettings

SCRIPT = "benchmarks/throughput.py"
TINY = GPT2Config(n_layer=1, n_head=2, n_embd=16, n_positions=128, vocab_size=8192, dropout=0.0)
SETTINGS = ThroughputSettings(
    model="mini", rows=10, max_length=64, batch_size=4, new_tokens=3, rounds=2
)
UNCOMPILED = [
    (name, contender)
    for name, task in TASKS.items()
    for contender in task.contenders
    if not contender.compiles
]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A job and its work for reviews and for instructions, with a tiny model."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(SIZES, "mini", TINY)
        folder = tmp_path_factory.mktemp("throughput")
        jobs = [
            Job(folder, data, SETTINGS, DeviceSettings("cpu", "float32"))
            for data in ("classification", "instruction")
        ]
        return {job.data: (job, prepare(job)) for job in jobs}


@pytest.mark.parametrize(
    "name, contender", UNCOMPILED, ids=[f"{name}-{each.name}" for name, each in UNCOMPILED]
)
def test_every_contender_sees_the_same_rows_and_tokens(prepared, name, contender):
    for package in contender.needs:
        if not importlib.util.find_spec(package):
            pytest.skip(f"{package} is not installed")
    job, work = prepared[TASKS[name].data]
    measured = contender.run(job, **contender.options)
    assert (measured.rows, measured.real_tokens) == (10, tokens_to_run(name, work, 3))
    assert measured.all_tokens >= measured.real_tokens
    assert 0 < measured.seconds < 60
    if contender.run in (contenders.train_here, savings.train_in):
        assert list(measured.shares) == ["data", "forward", "backward", "update"]
        assert sum(measured.shares.values()) == pytest.approx(1, abs=0.01)
        assert not (job.folder / "log" / "last").exists()  # nothing saved while others wait


def test_nothing_is_left_in_place_of_torchs_own(prepared):
    """Timing wraps `backward` and hooks optimizers, for as long as it takes."""
    before = torch.Tensor.backward
    job, _ = prepared["classification"]
    contenders.train_here(job)
    assert torch.Tensor.backward is before
    assert not _global_optimizer_post_hooks


def broken(*_, **__):
    raise AssertionError("it is not left out")


@pytest.mark.parametrize(
    "context, place",
    [
        (savings.in_random_order, "gpt2.batching.shuffled_batches"),
        (savings.all_logits_at_once, "gpt2.language_modelling.ChunkedCrossEntropy.apply"),
        (savings.torchs_attention, "gpt2.model._attention_in_blocks"),
        (savings.adamw_in_a_loop, "torch._fused_adamw_"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_saving_is_left_out_and_only_then(prepared, monkeypatch, context, place):
    job, _ = prepared["instruction"]
    job = dataclasses.replace(job, on=DeviceSettings("cpu", "bfloat16"))
    monkeypatch.setattr(place, broken)
    savings.train_in(job, context)
    with pytest.raises(AssertionError, match="not left out"):
        savings.train_in(job)


def test_where_all_is_float32_what_bfloat16_saves_is_not_measured(prepared, capsys):
    job, _ = prepared["classification"]
    in_float32 = {contender.name for contender in throughput.available(TASKS["savings"], job)}
    job = dataclasses.replace(job, on=DeviceSettings("cpu", "bfloat16"))
    in_bfloat16 = {contender.name for contender in throughput.available(TASKS["savings"], job)}
    assert in_bfloat16 - in_float32 == {"without bfloat16", "without blocks"}
    assert capsys.readouterr().out.count("in float32 there is no such saving") == 2


@pytest.mark.parametrize("task", ["classification", "instruction"])
def test_the_last_mlp_runs_for_all_tokens_again(prepared, monkeypatch, task):
    shapes = []
    forward = MLP.forward

    def count(mlp, x):
        if mlp.training:  # loading the model computes a little, too
            shapes.append(x.dim())
        return forward(mlp, x)

    monkeypatch.setattr(MLP, "forward", count)
    savings.train_in(prepared[task][0])
    assert set(shapes[TINY.n_layer - 1 :: TINY.n_layer]) == {2}  # (N, C)
    shapes.clear()
    savings.train_in(prepared[task][0], savings.whole_last_block)
    assert set(shapes) == {3}  # (B, T, C)


@pytest.mark.parametrize("contender", ["train_here", "predict_here", "generate_here"])
def test_compiling_is_that_of_the_scripts(prepared, monkeypatch, contender):
    compiled = []
    monkeypatch.setattr(contenders, "compile_blocks", compiled.append)
    job = prepared["instruction" if contender == "generate_here" else "classification"][0]
    getattr(contenders, contender)(job, compiled=True)
    assert len(compiled) == 1


def test_useful_work_is_what_torch_counts():
    """But for half of attention, of which torch counts the part that no token sees as well, and for
    biases and norms, which it does not count."""
    config = dataclasses.replace(TINY, n_embd=64, n_layer=3, vocab_size=50)
    work = Work(tokens=[120], prompts=[20], responses=[101])
    with torch.device("meta"):
        model = GPT2(config, LanguageModelHead(config)).eval()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            hidden = model.hidden_states(torch.zeros(1, 120, dtype=torch.int64))
            model.head(hidden[:, :101], None)
    unseen = 4 * config.n_embd * config.n_layer * 120 * 119 // 2
    ours = useful_work("instruction", config, work, 0) / 3
    assert ours == pytest.approx(counter.get_total_flops() - unseen, rel=0.02)
    # 20 tokens of the prompt and 29 of the answer, all of whose 30 are predicted
    longer = useful_work("generation", config, work, 30)
    shorter = useful_work("generation", config, work, 29)
    assert tokens_to_run("generation", work, 30) == 49
    one_more = longer - shorter - 2 * config.n_embd * config.vocab_size
    assert one_more == pytest.approx(2 * 12 * 64**2 * 3 + 4 * 64 * 3 * 49, rel=0.02)


def measured(seconds, rows=10, tokens=100):
    return Measured(seconds=seconds, rows=rows, real_tokens=tokens, all_tokens=120)


def contender(name, *seconds, **more):
    left = list(seconds)

    def run(job):
        if not left:
            raise RuntimeError("no kernel\nfor this")
        return measured(left.pop(0), **more)

    return Contender(name, "", run)


def test_medians_are_of_the_rounds_ratios(prepared, in_this_process, capsys):
    job, _ = prepared["classification"]
    three = dataclasses.replace(job, settings=dataclasses.replace(SETTINGS, rounds=3))
    chosen = [
        contender(OURS, 1, 10, 100),
        contender(OURS_COMPILED, 2, 5, 50),
        contender("slow", 2, 40, 300),
    ]
    runs = compare(chosen, three, (10, 100))
    assert ratios(runs).splitlines() == [
        f"{OURS} is 3.00 times as fast as slow (median of 3, 2.00 to 4.00)",
        f"{OURS_COMPILED} is 2.00 times as fast as {OURS} (median of 3, 0.50 to 2.00)",
        f"{OURS_COMPILED} is 6.00 times as fast as slow (median of 3, 1.00 to 8.00)",
    ]
    assert (
        "round 3: this project 100.00 s, this project, compiled 50.00 s, slow 300.00 s"
        in capsys.readouterr().out
    )


def test_who_fails_or_does_less_is_left_out_with_the_reason(prepared, in_this_process, capsys):
    job, _ = prepared["classification"]
    chosen = [contender(OURS, 1, 1), contender("late", 1), contender("lazy", 1, 1, rows=9)]
    assert list(compare(chosen, job, (10, 100))) == [OURS]
    printed = capsys.readouterr().out
    assert "late: left out, RuntimeError: no kernel for this" in printed
    assert "lazy: left out, ValueError: it saw (9, 100)" in printed
    with pytest.raises(RuntimeError):
        compare([contender(OURS)], job, (10, 100))


def test_a_process_of_its_own_gives_back_what_it_measured(prepared):
    job, work = prepared["classification"]
    run = measuring.in_own_process(measuring.run_contender, contenders.predict_here,
                                   job, {})  # fmt: skip
    assert (run.rows, run.real_tokens) == (10, sum(work.tokens))
    assert run.peak_memory > 2**26  # torch alone takes more


def test_the_script_prints_a_table_and_what_is_missing(in_this_process, call_script, monkeypatch):
    monkeypatch.setitem(SIZES, "mini", TINY)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("shutil.which", lambda command: None)
    done = call_script(SCRIPT, "--model", "mini", "--rows", 8, "--max-length", 32, "--rounds", 1,
                       "--tasks", "training")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Trainer: left out, not installed: transformers, accelerate (pip install" in done.stdout
    assert "this project, compiled: left out, because torch.compile needs a C++" in done.stdout
    assert "| this project |" in done.stdout and "matrix rate in float32" in done.stdout
    assert "time of this project: data " in done.stdout


@pytest.mark.parametrize("fast", [True, False])
def test_the_matrix_rate_is_not_measured_in_emulated_bfloat16(monkeypatch, fast):
    """Where it is emulated, one product of the size that CPUs get took eight minutes."""
    monkeypatch.setattr("gpt2.support.device._fast_bfloat16", lambda device: fast)
    monkeypatch.setitem(measuring.MATRIX_SIZES, "cpu", 64)
    rates = measuring.matrix_rates(torch.device("cpu"))
    assert list(rates) == (["float32", "bfloat16"] if fast else ["float32"])
    assert all(rate > 0 for rate in rates.values())


def test_what_does_not_fit_is_refused(in_this_process, call_script, monkeypatch):
    refused(call_script(SCRIPT, "--model", "mini", "--max-length", 500), "context of 512")
    monkeypatch.setitem(SIZES, "mini", TINY)
    short = ["--model", "mini", "--max-length", 32, "--tasks", "training"]
    refused(call_script(SCRIPT, *short, "--rows", 5000), "--rows 5000: there are 480")
