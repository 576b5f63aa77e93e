"""No test needs a network: connections to anything but this machine fail, here and in the scripts
that tests start."""

import importlib
import io
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from matplotlib.figure import Figure
from safetensors.torch import save
from small_hub import NAME, OLD, SmallHub, turn_client_to

from gpt2.heads import LanguageModelHead
from gpt2.model import GPT2, SIZES, GPT2Config
from gpt2.support.script import run_script as run_main
from gpt2.weights.hugging_face import RELEASED, to_stored_names

# Tests fork, and in a forked process the threads of its parent do not exist; sums over another
# number of threads differ in their last bit. So all tests compute with one.
torch.set_num_threads(1)

REPOSITORY = Path(__file__).parent.parent
SHARED = REPOSITORY.parent / "shared"  # real data, where somebody put it; tests pass without

_BLOCK = """
import socket
_connect = socket.socket.connect
def connect(self, address):
    host = address[0] if isinstance(address, tuple) else "127.0.0.1"
    if host not in ("127.0.0.1", "::1", "localhost"):
        raise OSError(f"tests have no network, but something connects to {address}")
    return _connect(self, address)
socket.socket.connect = connect
def getaddrinfo(host, *rest, _original=socket.getaddrinfo, **named):
    if host not in (None, "", "127.0.0.1", "::1", "localhost"):
        raise socket.gaierror(f"tests have no network, but something looks up {host}")
    return _original(host, *rest, **named)
socket.getaddrinfo = getaddrinfo
"""


def refused(done, *parts):
    """A script has answered bad input with status 2 and one line, which holds `parts`."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    for part in parts:
        assert part in done.stderr, done.stderr


def wait_for_lines(process, file, count=1):
    """Until `file`, a metrics.jsonl, has this many lines; not after `process` has ended."""
    for _ in range(12_000):
        if file.exists() and len(file.read_text().splitlines()) >= count:
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    raise AssertionError(f"{file} has no {count} lines after two minutes")


@pytest.fixture(scope="session", autouse=True)
def no_network():
    before = socket.socket.connect, socket.getaddrinfo
    exec(_BLOCK, {})
    yield
    socket.socket.connect, socket.getaddrinfo = before


@pytest.fixture(scope="session", autouse=True)
def coarse_pictures():
    """To draw a run's pictures finely takes a fifth of the time of a tiny run in this process. Runs
    in processes of their own draw them as a user's do."""
    savefig = Figure.savefig
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", lambda figure, file, dpi: savefig(figure, file, dpi=10))
        patch.setattr(Figure, "tight_layout", lambda figure: None)
        yield


@pytest.fixture(scope="session")
def script_environment(tmp_path_factory):
    """The environment of a script without a network, a hub cache or tiktoken's cache."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "sitecustomize.py").write_text(_BLOCK)
    empty = tmp_path_factory.mktemp("empty")
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("HF_", "TIKTOKEN"))
    }
    return environment | {
        # the checkout that is tested, whatever is installed
        "PYTHONPATH": os.pathsep.join([str(folder), str(REPOSITORY)]),
        "OMP_NUM_THREADS": "1",
        "HF_HOME": str(empty / "hub"),
        "HF_HUB_OFFLINE": "1",  # or the hub retries for half a minute
        "TIKTOKEN_CACHE_DIR": str(empty / "tiktoken"),
    }


@pytest.fixture
def run_script(script_environment, tmp_path):
    """Run a script of the repository as a user does; returns the finished process."""

    def run(script, *arguments, cwd=tmp_path, stdin="", environment=None):
        return subprocess.run(
            [sys.executable, str(REPOSITORY / script), *map(str, arguments)],
            cwd=cwd,
            input=stdin,
            env=script_environment | (environment or {}),
            capture_output=True,
            text=True,
            timeout=240,
        )

    return run


@pytest.fixture
def start_torchrun(script_environment, tmp_path):
    """Start a script of the repository in `count` processes; returns torchrun's process."""

    def start(count, script, *arguments, cwd=tmp_path):
        return subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", "--standalone",
             f"--nproc-per-node={count}", str(REPOSITORY / script), *map(str, arguments)],
            cwd=cwd, env=script_environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    return start


@pytest.fixture
def call_script(tmp_path, monkeypatch, capsys):
    """Like `run_script`, but inside this process, because starting one and importing torch takes
    seconds."""

    def call(script, *arguments, cwd=tmp_path, stdin=None, environment=None, offline=True):
        monkeypatch.chdir(cwd)
        if stdin is not None:
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
        empty = {"TIKTOKEN_CACHE_DIR": str(tmp_path / "no encodings")}
        for name, value in (empty | (environment or {})).items():
            monkeypatch.setenv(name, value)
        module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
        status = 0
        try:
            run_main(module.main)
        except SystemExit as end:
            status = end.code or 0
        printed = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, status, printed.out, printed.err)

    return call


@pytest.fixture
def in_this_process(monkeypatch):
    """benchmarks/throughput.py and scaling.py without the processes that they start, which take
    seconds each, and with small matrices."""
    from benchmarks import measuring, scaling, throughput

    # No compiler is found: compiling takes longer than all else.
    monkeypatch.setattr(throughput, "shutil", SimpleNamespace(which=lambda command: None))
    for script in (throughput, scaling):
        monkeypatch.setattr(script, "in_own_process", lambda function, *given: function(*given))
    monkeypatch.setitem(measuring.MATRIX_SIZES, "cpu", 64)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub that has a tiny GPT-2 under the name of the released one; this process, with a cache of
    its own, asks there."""
    config = GPT2Config(n_layer=1, n_head=1, n_embd=8)  # the released vocabulary and context
    monkeypatch.setitem(SIZES, "gpt2", config)
    torch.manual_seed(0)
    model = GPT2(config, LanguageModelHead(config))
    weights = to_stored_names(model)
    weights = {name.removeprefix("transformer."): tensor for name, tensor in weights.items()}
    weights["h.0.attn.bias"] = torch.ones(1, 1, 4, 4).tril()  # as the released files have it
    files = {"model.safetensors": save(weights)}
    with SmallHub(*RELEASED["gpt2"], files, "models") as hub:
        hub.model, hub.cache = model, tmp_path / "hub cache"
        turn_client_to(hub, monkeypatch)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub.cache))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("time.sleep", lambda seconds: None)  # between attempts
        yield hub


@pytest.fixture
def serve(tmp_path, monkeypatch):
    """Start a hub with a data set of these files; this process, with a cache of its own, asks
    there."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between attempts
    monkeypatch.chdir(tmp_path)
    hubs = []

    def start(files):
        hub = SmallHub(NAME, OLD, files).__enter__()
        hubs.append(hub)
        turn_client_to(hub, monkeypatch)
        return hub

    yield start
    for hub in hubs:
        hub.__exit__()


def length_when_still(growing):
    """How long the list is once nothing has come for a moment, after 40 seconds at most."""
    for _ in range(200):
        count = len(growing)
        time.sleep(0.2)
        if len(growing) == count:
            break
    return count
