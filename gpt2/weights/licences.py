"""What a model has learnt from, and under which licences: the weights it started from, its data."""

from __future__ import annotations

import json
from pathlib import Path

from gpt2.support.hub_datasets import licence_of_dataset
from gpt2.support.splits import hub_name
from gpt2.weights.building import ModelSettings, find_model_folder, initial_weights
from gpt2.weights.hugging_face import RELEASED

_IMDB = (
    "IMDb (Maas et al. 2011): the reviews were collected for research and belong to their authors"
)
_ALPACA = "Alpaca (Taori et al. 2023): CC BY-NC 4.0, no commercial use"


def licences(start: ModelSettings, data: list[str], revision: str = "") -> list[str]:
    """A line on each thing that the weights have learnt from, for the card of an exported model.
    `start` is what the model is built from, `data` what --data names, `revision` the commit of a
    data set of the hub."""
    return with_licences_of_data(_of_weights(start), data, revision)


def with_licences_of_data(weights: list[str], data: list[str], revision: str = "") -> list[str]:
    """The lines on the `weights` that training starts from, and one on each of `data`."""
    lines = [*weights, *(_of_data(name, revision) for name in data)]
    return list(dict.fromkeys(lines))  # a resumed run starts from weights that know its data


def _of_weights(start: ModelSettings) -> list[str]:
    if initial_weights(start) == "random":
        return []
    if start.model == "mini":
        return [f"pre-training of mini on {_IMDB}", f"pre-training of mini on {_ALPACA}"]
    if start.model in RELEASED:
        return [f"weights of {RELEASED[start.model][0]}: MIT"]
    found = find_model_folder(start)
    if found.kind != "checkpoint":
        return [f"weights in {found.folder.resolve().name}: see the card that came with them"]
    description = json.loads((found.folder / "config.json").read_text(encoding="utf-8"))
    unknown = [f"weights in {start.model}: a run that has not saved what it was trained on"]
    return description["settings"].get("trained_on") or unknown


def _of_data(data: str, revision: str) -> str:
    """Of the hub, what the card says; else by the name alone: a copy of a known data set has its
    licence as well."""
    if hub_name(data):
        return licence_of_dataset(data, revision)
    name = Path(data).resolve().name
    if data == "sample":
        return "the built-in sample of gpt2-finetuning: MIT"
    if "imdb" in name.lower():
        return _IMDB
    if "alpaca" in name.lower():
        return _ALPACA
    return f"{name}: its licence is not known to gpt2-finetuning"
