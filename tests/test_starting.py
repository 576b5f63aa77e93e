"""Which code a script runs, and what it sets before torch is there."""

import ast
import os
import shutil
import subprocess
import sys

import pytest
from conftest import REPOSITORY

# Stands in the place of torch and of whatever else a script imports first: ends it there, at once.
STAND_IN = """
import os, gpt2
raise SystemExit(f"{gpt2.__file__} runs; threads wait: {os.environ.get('OMP_WAIT_POLICY')}")
"""


def is_script(file):
    """Whether `python FILE` does anything."""
    last = ast.parse(file.read_text(encoding="utf-8")).body[-1:]
    return bool(last) and ast.unparse(last[0]).startswith("if __name__ == '__main__'")


@pytest.fixture
def second_checkout(tmp_path):
    """A copy of the packages, beside a torch of its own that says who imports it."""
    for package in REPOSITORY.glob("*/__init__.py"):
        ignored = shutil.ignore_patterns("__pycache__", "mini", "*.csv", "*.json")
        name = package.parent.name
        shutil.copytree(REPOSITORY / name, tmp_path / "copy" / name, ignore=ignored)
    for library in ("torch", "numpy", "polars", "tiktoken", "tqdm"):
        (tmp_path / f"copy/{library}.py").write_text(STAND_IN)
    return tmp_path / "copy"


def start(*command, cwd, **environment):
    """A process in which this repository is installed, as by `pip install -e .`: PYTHONPATH comes
    even before what pip has installed."""
    mine = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    return subprocess.Popen(
        [sys.executable, *map(str, command)], cwd=cwd, text=True, stderr=subprocess.PIPE,
        env=mine | {"PYTHONPATH": str(REPOSITORY)} | environment,
    )  # fmt: skip


def test_scripts_run_the_code_that_lies_beside_them(second_checkout, tmp_path):
    scripts = [file for file in sorted(second_checkout.glob("**/*.py")) if is_script(file)]
    names = {file.relative_to(second_checkout).as_posix() for file in scripts}
    assert {
        "classification/train_gpt.py",
        "benchmarks/scaling.py",
        "gpt2/weights/export.py",
    } < names
    train = second_checkout / "classification/train_gpt.py"
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1")
    started = {file: start(file.name, cwd=file.parent) for file in scripts}
    started |= {
        "from elsewhere": start(train, cwd=tmp_path),
        "as a module": start("-m", "gpt2.weights.export", cwd=second_checkout),
        "torchrun": start(*torchrun, train, cwd=tmp_path),
    }
    expected = f"{second_checkout / 'gpt2/__init__.py'} runs; threads wait: PASSIVE"
    for how, process in started.items():
        said = process.communicate(timeout=120)[1]
        assert said.startswith(expected), (how, said)


def test_how_threads_wait_is_left_to_who_has_said_so(second_checkout, tmp_path):
    train = second_checkout / "classification/train_gpt.py"
    said = start(train, cwd=tmp_path, OMP_WAIT_POLICY="ACTIVE").communicate(timeout=120)[1]
    assert said.endswith("threads wait: ACTIVE\n")
