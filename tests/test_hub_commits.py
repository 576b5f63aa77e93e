"""Which commit of a data set of the hub is read, from the hub or the cache; whole runs on one; and
clear lines where it cannot be had."""

import json
from types import SimpleNamespace

import pytest
from conftest import refused
from small_hub import NAME, OLD
from test_hub_datasets import CARD, csv, load, parquet

from classification.evaluate import EvaluationSettings, read_labelled
from gpt2.support.errors import UserError
from gpt2.weights.building import ModelSettings
from gpt2.weights.licences import licences

TRAIN = "classification/train_gpt.py"
NEW = "2" * 40


# ---- which commit


def test_the_commit_of_a_run_stays_when_the_hub_moves_on(serve):
    hub = serve({"train.csv": csv(0, 40)})
    first = load()
    assert first.revision == OLD
    hub.commits, hub.revision, hub.files = {OLD: hub.files}, NEW, {"train.csv": csv(100, 40)}
    assert load().revision == NEW and load().train["text"][0] not in set(first.train["text"])
    for again in (load(revision=OLD), load(f"{NAME}@{OLD}"), load(f"{NAME}@main", revision=OLD)):
        assert again.revision == OLD and again.train.equals(first.train)
    hub.branches.add("refs/convert/parquet")
    assert load(f"{NAME}@refs/convert/parquet").revision == NEW


def test_from_the_cache_without_a_network(serve, monkeypatch, capsys):
    hub = serve({"train.csv": csv(0, 40), "test.csv": csv(50, 10)})
    first = load()
    hub.requests.clear()
    assert load(revision=OLD).test.equals(first.test)
    assert not hub.requests  # a commit does not change
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    capsys.readouterr()
    again = load()
    assert again.revision == OLD and again.train.equals(first.train)
    assert "the hub cannot be asked; its commit in the cache is used" in capsys.readouterr().out
    with pytest.raises(UserError, match="not in the cache and the hub cannot be asked"):
        load("me/other")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    assert load().train.equals(first.train)
    assert "the hub cannot be asked" in capsys.readouterr().out


# ---- clear lines


def test_a_name_that_is_nowhere_names_both_possibilities(serve):
    serve({"train.csv": csv(0, 40)})
    for data, message in (
        ("me/typo", "me/typo: no such file or folder here, and the hub has no data set me/typo"),
        ("data/typo.csv", "data/typo.csv: no such file or folder .*OWNER/NAME"),
        ("typo", "typo: no such file or folder .*OWNER/NAME"),
        ("../me/typo", "../me/typo: no such file or folder"),
        (f"{NAME}@typo", f"{NAME}@typo: no such file or folder here, and .* no revision 'typo'"),
    ):
        with pytest.raises(UserError, match=f"^--data {message}") as error:
            load(data)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="--revision is for data sets of the hub"):
        load("sample", revision="main")
    with pytest.raises(UserError, match="--split-column goes with one file"):
        load(split_column="x")


def test_a_local_folder_of_that_name_comes_first(serve, tmp_path):
    hub = serve({"train.csv": csv(0, 40)})
    (tmp_path / NAME).mkdir(parents=True)
    (tmp_path / NAME / "train.csv").write_bytes(csv(0, 60))
    assert sum(len(frame) for _, frame in load().items()) == 60
    assert not hub.requests


def test_a_gated_data_set_says_where_to_ask(serve):
    hub = serve({"train.csv": csv(0, 40)})
    hub.gated = True
    with pytest.raises(
        UserError, match=f"gated: accept its conditions at .*/datasets/{NAME}, .*HF_TOKEN"
    ):
        load()


def test_a_download_that_breaks_off_trains_nothing_and_is_mended_by_the_next(serve):
    hub = serve({"train-00000-of-00002.csv": csv(0, 40), "train-00001-of-00002.csv": csv(40, 40)})
    hub.faults["train-00001-of-00002.csv"] = [500] * 100
    with pytest.raises(UserError, match=r"train-00001.* cannot be downloaded"):
        load()
    hub.faults.clear()
    assert sum(len(frame) for _, frame in load().items()) == 80


# ---- a whole run


def test_a_run_records_its_commit_and_goes_on_with_it(serve, call_script, tmp_path):
    hub = serve({"train.csv": csv(0, 60), "test.csv": csv(60, 10)})
    command = (TRAIN, "--data", NAME, "--model", "scratch", "--n-layer", 1, "--n-head", 2,
               "--n-embd", 8, "--resume", "auto", "--out", "run")  # fmt: skip
    done = call_script(*command, "--max-steps", 1, offline=False)
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert (
        config["settings"]["data"] | {"data": NAME, "revision": OLD} == config["settings"]["data"]
    )
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert results["data"]["revision"] == OLD and results["data"]["test"] == 10

    hub.commits, hub.revision, hub.files = {OLD: hub.files}, NEW, {"train.csv": csv(100, 40)}
    done = call_script(*command, "--max-steps", 2, offline=False)
    assert done.returncode == 0 and f"commit {OLD}" in done.stdout, done.stderr
    assert json.loads((tmp_path / "run/results.json").read_text())["data"] == results["data"]

    refused(call_script(TRAIN, "--data", "me/typo", offline=False), "me/typo: no such file", "hub")


def test_a_finished_run_is_evaluated_on_a_data_set_of_the_hub(serve):
    """As training reads it: by its splits, at the newest commit, which the results record."""
    serve({"train.csv": csv(0, 20), "test.csv": csv(20, 10)})
    recipe = SimpleNamespace(
        settings={"labels": ["0", "1"], "text_column": "text", "label_column": "label"}
    )
    rows, described = read_labelled(EvaluationSettings(data=NAME), recipe)
    assert len(rows) == 10 and described["split"] == "test" and described["revision"] == OLD


def test_a_model_carries_the_licence_that_the_card_names(serve):
    serve({"README.md": CARD.encode(), "plain/train-0.parquet": parquet(0, 20)})
    (line,) = licences(ModelSettings("mini", "random"), [f"{NAME}:plain"], OLD)
    assert line == f"{NAME} of the hub, commit {OLD[:12]}: mit"
