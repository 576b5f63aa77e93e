"""Downloads, from a hub on loopback: once, then from the cache; every fault ends in one clear line
or a clean retry, and never in a damaged cache."""

import json
import resource
import subprocess
import sys

import pytest
import torch
from conftest import REPOSITORY
from small_hub import SmallHub, turn_client_to

from classification.sources import IMDB_FILES, IMDB_REVISION
from gpt2.heads import LanguageModelHead
from gpt2.model import SIZES
from gpt2.support.errors import UserError
from gpt2.support.hub import download, download_dataset
from gpt2.weights.building import ModelSettings, build_model
from gpt2.weights.hugging_face import RELEASED
from instruction.sources import DOWNLOADS

REPOSITORY_NAME, REVISION = RELEASED["gpt2"]


def load():
    settings = ModelSettings(model="gpt2")
    model, origin = build_model(settings, SIZES["gpt2"], LanguageModelHead, "all", seed=1)
    assert origin == "pretrained weights of openai-community/gpt2"
    return model


def sent(hub):
    """The requests that files were sent in answer to."""
    return [path for command, path in hub.requests if command == "GET" and "/storage/" in path]


def assert_equal(model, expected):
    for (name, ours), theirs in zip(model.named_parameters(), expected.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def nothing_left(cache):
    """No file of the repository, whole or half, that a later run could take for good."""
    return not any(
        path.suffix == ".safetensors" or path.suffix == ".incomplete" or path.parent.name == "blobs"
        for path in cache.rglob("*")
        if path.is_file()
    )


def test_weights_are_downloaded_once_and_then_read_without_the_hub(hub):
    assert_equal(load(), hub.model)
    assert sent(hub) == [f"/storage/{REVISION}/model.safetensors"]
    hub.__exit__()
    before = len(hub.requests)
    assert_equal(load(), hub.model)
    assert len(hub.requests) == before


def test_a_download_that_breaks_off_goes_on_where_it_broke(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 10_000)  # or 10 MB
    hub.faults["model.safetensors"] = ["cut", "cut"]
    assert_equal(load(), hub.model)
    first, *later = sent(hub)
    starts = [int(path.split("bytes=")[1].rstrip("-")) for path in later]
    assert "bytes" not in first and len(starts) == 2 and 0 < starts[0] < starts[1]


def test_an_error_of_the_hub_that_heals_is_waited_for(hub):
    hub.faults["model.safetensors"] = [500]
    hub.headless = 2
    assert_equal(load(), hub.model)


def refused(cache, *parts):
    with pytest.raises(UserError) as error:
        load()
    assert len(str(error.value).splitlines()) == 1
    for part in parts:
        assert part in str(error.value)
    assert nothing_left(cache)


WAY_OUT = ("openai-community/gpt2", "--model FOLDER", "--init random")


def test_an_error_of_the_hub_that_stays_is_told(hub):
    hub.faults["model.safetensors"] = [500] * 10
    refused(hub.cache, "500", *WAY_OUT)
    assert len(hub.faults["model.safetensors"]) == 6  # four attempts
    hub.faults.clear()
    assert_equal(load(), hub.model)  # and nothing of it stays


def test_a_file_that_is_not_there_is_told(hub):
    content = hub.files.pop("model.safetensors")
    refused(hub.cache, "404", *WAY_OUT)
    hub.files["model.safetensors"] = content
    assert_equal(load(), hub.model)  # a 404 is not remembered


def test_a_wrong_checksum_is_told_and_the_file_deleted(hub):
    hub.checksums["model.safetensors"] = "0" * 64
    refused(hub.cache, "model.safetensors is damaged", "000000000000", "deleted")
    hub.checksums.clear()
    assert_equal(load(), hub.model)


def test_a_file_that_went_bad_in_the_cache_is_told_and_deleted(hub):
    load()
    (blob,) = (hub.cache / f"models--{REPOSITORY_NAME.replace('/', '--')}/blobs").iterdir()
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    refused(hub.cache, "model.safetensors is damaged", "deleted")
    assert_equal(load(), hub.model)


def test_a_damaged_header_is_told(hub):
    """The hub itself holds a file that is no safetensors: nothing the cache could mend."""
    content = hub.files["model.safetensors"]
    hub.files["model.safetensors"] = b"\xff" * 16 + content[16:]
    with pytest.raises(UserError, match=r"model\.safetensors: cannot be read as safetensors"):
        load()
    # The same revision with other bytes cannot be: a file is known by its commit.
    assert not list(hub.cache.rglob("*.incomplete"))


def test_without_a_network_one_attempt_is_made(hub, monkeypatch):
    hub.__exit__()
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("it waits"))
    refused(hub.cache, "refused", *WAY_OUT)


def test_git_files_have_their_checksum_too(hub, monkeypatch):
    repository, file, revision = DOWNLOADS["alpaca"]
    rows = json.dumps([{"instruction": "a", "input": "", "output": "b"}]).encode()
    with SmallHub(repository, revision, {file: rows}) as data:
        turn_client_to(data, monkeypatch)
        (path,) = download_dataset(repository, [file], revision)
        assert path.read_bytes() == rows
        path.resolve().write_bytes(rows[:-1] + b" ")
        with pytest.raises(UserError, match=f"{file} is damaged"):
            download_dataset(repository, [file], revision)
        assert download_dataset(repository, [file], revision)[0].read_bytes() == rows


@pytest.mark.parametrize("name", ["imdb", *DOWNLOADS])
def test_every_data_set_is_pinned_and_names_the_way_out(hub, name):
    repository, file, revision = DOWNLOADS.get(
        name, ("stanfordnlp/imdb", IMDB_FILES[0], IMDB_REVISION)
    )
    assert len(revision) == 40
    hub.__exit__()
    with pytest.raises(UserError, match=f"the dataset {repository} .*--data PATH"):
        download_dataset(repository, [file], revision)


def test_a_full_disk_is_told_and_leaves_nothing(hub, tmp_path, script_environment):
    """A process that may not write files of more than 100 kB stands in for a full disk."""
    hub.files["model.safetensors"] += bytes(200_000)
    code = (
        "from gpt2.support.hub import download; from gpt2.support.script import run_script\n"
        f"run_script(lambda: download('{REPOSITORY_NAME}', 'model.safetensors', '{REVISION}', "
        "'model', 'make room'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=script_environment | {
            "HF_ENDPOINT": hub.address, "HF_HUB_CACHE": str(hub.cache), "HF_HUB_OFFLINE": "0",
            "PYTHONPATH": f"{REPOSITORY}:{script_environment['PYTHONPATH']}",
        },
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "File too large" in done.stderr and "make room" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert nothing_left(hub.cache)
    way = ("model.safetensors", REVISION, "model", "")
    assert download(REPOSITORY_NAME, *way).stat().st_size == len(hub.files["model.safetensors"])
