"""Checkpoints: whole or refused, whatever happens to the files, the disk or the process."""

import hashlib
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from test_resume import SAVED_ENCODING, datasets, in_child, run_task
from test_training import tiny_model

from gpt2.checkpoint import Recipe, TrainingState, load_checkpoint, load_training, save_checkpoint
from gpt2.optimization import TrainingConfig, parameter_groups
from gpt2.support.durable import MANIFEST, check_folder, whole_folder
from gpt2.support.errors import UserError
from gpt2.support.run_folder import RunFolder
from gpt2.tokenizer import get_encoding

CHECKPOINT = Recipe(
    "classification", get_encoding("mini"), {"labels": ["bad", "good"], "max_length": 64}
)


def optimizer_of(model):
    return torch.optim.AdamW(parameter_groups(model, 0.1), fused=True)


def save(folder, model=None, step=1):
    model = model or tiny_model()
    optimizer = optimizer_of(model)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    progress = TrainingState(step=step)
    save_checkpoint(folder, model, CHECKPOINT, progress, optimizer, "rows")


def load(folder):
    model = tiny_model(seed=1)
    return load_training(folder, model, optimizer_of(model), "rows")


def refused(folder, *parts):
    """Both ways to read a checkpoint refuse it, and the model is what it was."""
    for read in (load, lambda path: load_checkpoint(path, "classification")):
        with pytest.raises(UserError) as error:
            read(folder)
        for part in parts:
            assert part in str(error.value)
    model = tiny_model(seed=1)
    with pytest.raises(UserError):
        load_training(folder, model, optimizer_of(model), "rows")
    assert torch.equal(model.wte.weight, tiny_model(seed=1).wte.weight)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "last"
    save(folder)
    return folder


def test_a_checkpoint_is_what_it_says(saved):
    names = {"model.safetensors", "optimizer.safetensors", "computed.safetensors", "config.json",
             "training.json", "encoding.json", "vocabulary.tiktoken", MANIFEST}  # fmt: skip
    assert {file.name for file in saved.iterdir()} == names
    assert load(saved).step == 1
    tool = shutil.which("sha256sum")
    if tool:
        subprocess.run([tool, "--check", "--strict", "--quiet", MANIFEST], cwd=saved, check=True)
    modes = {file.stat().st_mode for file in saved.iterdir()}
    assert len(modes) == 1  # safetensors alone would make files that only their owner reads


def test_a_flipped_bit_is_refused_wherever_it_is(saved, tmp_path):
    draw = random.Random(0)
    for file in sorted(saved.iterdir()):
        size = file.stat().st_size
        regions = min(size, 200 if file.name == MANIFEST else 12)
        for region in range(regions):
            place = draw.randrange(size * region // regions, size * (region + 1) // regions)
            shutil.copytree(saved, tmp_path / "last", dirs_exist_ok=True)
            with open(tmp_path / "last" / file.name, "r+b") as opened:
                opened.seek(place)
                byte = opened.read(1)[0]
                opened.seek(place)
                opened.write(bytes([byte ^ (1 << draw.randrange(8))]))
            with pytest.raises(UserError) as error:
                check_folder(tmp_path / "last")
            assert str(tmp_path / "last") in str(error.value)
    refused(tmp_path / "last")


def test_resumed_moments_do_not_live_in_the_file(saved, tmp_path):
    """The next save replaces the file; what is bound to it would keep it on disk."""
    folder = shutil.copytree(saved, tmp_path / "last")
    model = tiny_model(seed=1)
    optimizer = optimizer_of(model)
    load_training(folder, model, optimizer, "rows")
    with open(folder / "optimizer.safetensors", "r+b") as file:
        file.seek(-4000, 2)
        file.write(bytes(4000))
    # After one step with gradients of 1 none is 0.
    assert all(state["exp_avg_sq"].min() > 0 for state in optimizer.state.values())


@pytest.mark.parametrize("name", ["model.safetensors", "vocabulary.tiktoken", "config.json"])
def test_a_truncated_or_missing_or_foreign_file_is_named(saved, tmp_path, name):
    folder = tmp_path / "last"
    shutil.copytree(saved, folder)
    content = (folder / name).read_bytes()
    expected = next(
        line.split()[0] for line in (folder / MANIFEST).read_text().splitlines() if name in line
    )
    (folder / name).write_bytes(content[:-1])
    refused(folder, str(folder / name), expected, "SHA-256 is")
    (folder / name).unlink()
    refused(folder, name)
    (folder / name).write_bytes(content)
    load(folder)
    (folder / "weights.pt").write_bytes(b"?")
    refused(folder, "weights.pt: does not belong")
    (folder / "weights.pt").rename(folder / ".DS_Store")
    load(folder)
    (folder / MANIFEST).unlink()
    refused(folder, f"no {MANIFEST}")


def test_a_file_of_another_checkpoint_is_refused(saved, tmp_path):
    save(tmp_path / "last", tiny_model(seed=2))
    shutil.copy(saved / "model.safetensors", tmp_path / "last")
    refused(tmp_path / "last", "model.safetensors", "another checkpoint's")


class Trap:
    def __reduce__(self):
        return (Path.touch, (Path("trap was opened"),))


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "training.json"])
def test_a_pickle_is_refused_and_not_opened(saved, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "last"
    shutil.copytree(saved, folder)
    (folder / name).write_bytes(pickle.dumps(Trap()))
    refused(folder, str(folder / name))
    manifest = (folder / MANIFEST).read_text().splitlines()
    checksum = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    fitting = [f"{checksum}  {name}" if line.endswith(name) else line for line in manifest]
    (folder / MANIFEST).write_text("\n".join(fitting) + "\n")
    with pytest.raises(UserError, match=rf"{name}: cannot be (read|resumed from)"):
        load(folder)
    assert not (tmp_path / "trap was opened").exists()


def test_best_of_a_damaged_run_still_loads(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "last")
    save(tmp_path / "best", tiny_model(seed=3))
    (tmp_path / "last/model.safetensors").write_bytes(b"")
    (tmp_path / "config.json").write_text("{")
    (tmp_path / "metrics.jsonl").write_text("{")
    model, checkpoint = load_checkpoint(tmp_path, "classification")
    assert checkpoint.settings["labels"] == ["bad", "good"]
    assert model.wte.weight.shape == (8192, 16)


def test_killed_50_times_while_saving_a_whole_checkpoint_is_left(tmp_path, monkeypatch):
    """Each process goes on from the checkpoint that the one before has left."""
    small = Recipe("classification", SAVED_ENCODING, CHECKPOINT.settings)
    monkeypatch.setattr(sys.modules[__name__], "CHECKPOINT", small)
    folder, draw = tmp_path / "last", random.Random(0)
    save(folder, step=0)
    began = time.perf_counter()
    save(folder, step=0)
    a_save = time.perf_counter() - began
    started, steps = tmp_path / "started", [0]

    def save_for_ever():
        step = load(folder).step
        started.touch()
        while True:
            step += 1
            save(folder, step=step)

    between_renames = 0
    for _ in range(50):
        started.unlink(missing_ok=True)
        child = os.fork()
        if child == 0:
            os.fsync = lambda descriptor: None
            save_for_ever()
        while not started.exists():
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 4 * a_save))
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -9
        between_renames += not folder.exists()
        check_folder(whole_folder(folder))
        steps.append(load(folder).step)
    assert steps == sorted(steps) and steps[-1] > 10


def test_a_kill_between_the_two_renames(saved, tmp_path):
    """The moment that the test above may miss: the old folder has made room, the new one has not
    taken it yet."""
    shutil.copytree(saved, tmp_path / "best.old")
    shutil.copytree(saved, tmp_path / "best.new")
    (tmp_path / "config.json").write_text("{}")
    assert load(tmp_path / "best").step == 1
    load_checkpoint(tmp_path, "classification")

    def fail_to_save():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        save(tmp_path / "best", step=2)

    assert in_child(fail_to_save) == 2
    assert load(tmp_path / "best").step == 1
    save(tmp_path / "best", step=2)
    assert load(tmp_path / "best").step == 2
    assert not list(tmp_path.glob("best.*"))


def test_a_full_disk_leaves_the_checkpoint_before(saved, tmp_path):
    folder = tmp_path / "last"
    shutil.copytree(saved, folder)
    report = tmp_path / "report"

    def save_on_full_disk():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            save(folder, step=2)
        except UserError as error:
            report.write_text(str(error))
            raise

    assert in_child(save_on_full_disk) == 2
    assert "cannot be written" in report.read_text() and "is intact" in report.read_text()
    assert load(folder).step == 1
    assert not (tmp_path / "last.new").exists()


def test_a_full_tmpfs(tmp_path):
    """The same on a real full disk, where the machine allows to mount one."""
    mounted = tmp_path / "small"
    mounted.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(mounted)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount")
    try:
        save(mounted / "last")
        (mounted / "fill").write_bytes(b"x" * 200_000)
        with pytest.raises(UserError, match=r"No space left on device.*saved before is intact"):
            for _ in range(3):
                save(mounted / "last", step=2)
        assert load(mounted / "last").step in (1, 2)
        run = RunFolder(mounted)
        with pytest.raises(UserError, match=r"metrics.jsonl: cannot be written .*No space left"):
            for _ in range(10_000):
                run.log({"step": 1, "filling": "x" * 1000})
        with pytest.raises(UserError, match=r"results.json: cannot be written .*No space left"):
            run.write_json("results.json", "x" * 200_000)
        assert not list(mounted.glob("*.new"))
    finally:
        subprocess.run(["umount", str(mounted)], check=True)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o555)
    for folder in (tmp_path, *tmp_path.parents):
        if folder == tmp_path or folder.name.startswith(("pytest-", "popen-")):
            folder.chmod(0o755)
    report = tmp_path / "report"
    report.touch()
    report.chmod(0o666)

    def start():
        if os.geteuid() == 0:
            os.setuid(65534)  # root may write everywhere
        try:
            RunFolder(tmp_path / "locked/run").start({}, "cpu")
        except UserError as error:
            report.write_text(str(error))
            raise

    assert in_child(start) == 2
    assert "cannot be written (Permission denied)" in report.read_text()


def test_a_second_process_on_the_same_run_is_refused(tmp_path):
    RunFolder(tmp_path / "free").start({}, "cpu")
    run = RunFolder(tmp_path / "run")
    run.start({}, "cpu")
    for resume in (False, True):
        with pytest.raises(UserError, match="another process is writing this run"):
            RunFolder(tmp_path / "run", resume=resume).start({}, "cpu")
    assert in_child(lambda: RunFolder(tmp_path / "run", resume=True).start({}, "cpu")) == 2
    del run  # as the end of its process
    RunFolder(tmp_path / "run", resume=True).start({}, "cpu")


def test_other_training_rows_are_refused(saved, tmp_path):
    model = tiny_model()
    with pytest.raises(UserError, match="training rows are not those"):
        load_training(saved, model, optimizer_of(model), "other rows")


def test_out_of_memory_says_which_flags_keep_the_batch(tmp_path):
    config = TrainingConfig(epochs=1, batch_size=8, evaluate_every=1, precision="float32",
                            learning_rate=6e-4)  # fmt: skip
    data = datasets("classification")
    report = tmp_path / "report"

    def grow():
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**26, used + 2**26))
        torch.empty(2**30)

    def run_out_of_memory():
        steps = []
        original = torch.optim.AdamW.step

        def step(optimizer, closure=None):
            steps.append(1)
            if len(steps) == 2:
                grow()
            return original(optimizer, closure)

        torch.optim.AdamW.step = step
        try:
            run_task("classification", data, tmp_path / "run", False, config)
        except UserError as error:
            report.write_text(str(error))
            raise

    assert in_child(run_out_of_memory) == 2
    said = report.read_text()
    assert "out of memory in step 2, with 8 rows at once: --micro-batch-size 4" in said
    assert "--max-length" in said and "--resume" in said
    check_folder(tmp_path / "run/last")
    config.micro_batch_size = 4
    assert run_task("classification", data, tmp_path / "run", True, config).steps == 2
