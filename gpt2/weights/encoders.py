"""From `--model` of train_encoder.py to an encoder: which files, tokens, weights and classifier."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gpt2.checkpoint import load_checkpoint
from gpt2.encoder import Encoder, EncoderConfig, import_transformers, merge_encoder, new_network
from gpt2.lora import LoRA, add_adapters
from gpt2.optimization import choose_trainable
from gpt2.support.distributed import on_rank_0
from gpt2.support.durable import MANIFEST, whole_folder
from gpt2.support.errors import UserError
from gpt2.support.flags import flag
from gpt2.support.hub import download, list_files
from gpt2.support.run_folder import RunFolder
from gpt2.support.same_logits import compute_logits, fixed_rows, how_changed, same_logits
from gpt2.support.splits import hub_name
from gpt2.tokenizer import EncoderTokenizer, load_encoding
from gpt2.weights.hugging_face import weight_files
from gpt2.weights.lora_base import check_there, check_unchanged, sha256_of

# name -> repository, pinned commit, licence
RELEASED_ENCODERS = {
    "distilbert-base-uncased": (
        "distilbert/distilbert-base-uncased", "12040accade4e8a0f71eabdb258fecc2e7e948be",
        "Apache-2.0",
    ),
    "bert-base-uncased": (
        "google-bert/bert-base-uncased", "86b5e0934494bd15c9632b12f734a8a67f723594", "Apache-2.0",
    ),
    "roberta-base": (
        "FacebookAI/roberta-base", "e2da8e2f811d1448a5b465c236feacd80ffbac7b", "MIT",
    ),
}  # fmt: skip

# The files of a repository that are downloaded: of the weights the first that is there.
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.txt", "vocab.json", "merges.txt", "sentencepiece.bpe.model", "spiece.model", "spm.model",
)  # fmt: skip
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")


@dataclass
class EncoderSettings:
    """Model"""

    model: str = flag(
        "distilbert-base-uncased",
        f"{', '.join(RELEASED_ENCODERS)} or another encoder of the hub, OWNER/NAME[@REVISION], "
        "downloaded; a folder: an encoder in the Hugging Face layout, or a run to go on from",
        names=tuple(RELEASED_ENCODERS),
    )
    dropout: float | None = flag(
        None, "share of activations dropped in training; left out, as the encoder was pre-trained, "
        "mostly 0.1", at_least=0, at_most=0.9,
    )  # fmt: skip


@dataclass
class FoundEncoder:
    """What `--model` names. `labels` are those of its classifier, None if it has none."""

    where: str  # in words
    name: str  # that finds the same again: OWNER/NAME@COMMIT, or a folder
    folder: Path
    config: dict[str, Any]  # as transformers describes it
    labels: list[str] | None
    encoding: EncoderTokenizer
    is_checkpoint: bool  # of this project, and not in the Hugging Face layout
    learnt_from: list[str]  # with the licences
    lora: LoRA | None = None  # of a checkpoint of --train lora


def starting_encoder(settings: EncoderSettings, run: RunFolder) -> FoundEncoder:
    """What the encoder is built from: what `--model` names, or of a run to resume its own `last/`,
    so that what `--model` named when it began need not be there any more; but for adapters, which
    stand on it. Raises UserError if these weights are gone, or have changed."""
    last = whole_folder(run.folder / "last")
    if not (run.resume and last.is_dir() and (run.folder / "before.json").is_file()):
        return find_encoder(settings)
    found = _read_checkpoint(last)
    return _find_base(found.lora) if found.lora else found


def find_encoder(settings: EncoderSettings) -> FoundEncoder:
    """What `--model` names, downloaded if need be. Raises UserError if it is no encoder, or cannot
    be had."""
    name = settings.model
    if Path(name).is_dir():
        best = whole_folder(Path(name) / "best")
        folder = best if best.is_dir() else Path(name)
        if (folder / MANIFEST).is_file():
            return _read_checkpoint(folder)
        learnt_from = [f"weights in {folder.resolve().name}: see the card that came with them"]
        return _read_layout(folder, str(folder), os.path.abspath(folder), learnt_from)
    if name in RELEASED_ENCODERS:
        repository, revision, _ = RELEASED_ENCODERS[name]
    elif hub := hub_name(name):
        repository, revision = hub["repository"], hub["revision"] or "main"
    else:
        raise UserError(
            f"--model {name}: neither a folder nor an encoder of the hub "
            f"({', '.join(RELEASED_ENCODERS)}, OWNER/NAME)"
        )
    folder, commit = on_rank_0(lambda: _download(repository, revision))
    licences = {repository: licence for repository, _, licence in RELEASED_ENCODERS.values()}
    learnt_from = [f"weights of {repository}: {licences.get(repository, 'see its card')}"]
    where, name = f"{repository} at {commit[:8]}", f"{repository}@{commit}"
    return _read_layout(folder, where, name, learnt_from)


def _download(repository: str, revision: str) -> tuple[Path, str]:
    """The folder of the hub's cache that holds the encoder, and its commit."""
    way_out = "if you have its files, name their folder: --model FOLDER"
    commit, files = list_files("model", repository, revision, way_out)
    weights = next((name for name in _WEIGHTS if name in files), None)
    if weights is None or "config.json" not in files:
        raise UserError(f"the model {repository} has no config.json with {' or '.join(_WEIGHTS)}")
    wanted = ["config.json", *(name for name in _TOKENIZER_FILES if name in files), weights]
    if weights.endswith(".index.json"):
        index = download(repository, weights, commit, "model", way_out)
        wanted += sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    paths = [download(repository, name, commit, "model", way_out) for name in wanted]
    return paths[0].parent, commit


def _read_checkpoint(folder: Path) -> FoundEncoder:
    """One of a run of this project."""
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config, settings = content.get("encoder"), content["settings"]
        lora = LoRA(**content["lora"]) if content.get("lora") else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{folder / 'config.json'}: not a checkpoint's ({error!r})") from None
    if config is None:
        raise UserError(
            f"--model {folder}: is a run of GPT-2; classification/train_gpt.py goes on from it"
        )
    where = f"{folder} ({content['task']})"
    return FoundEncoder(
        where, os.path.abspath(folder), folder, config, settings["labels"], load_encoding(folder),
        True, settings["trained_on"], lora,
    )  # fmt: skip


def _read_layout(folder: Path, where: str, name: str, learnt_from: list[str]) -> FoundEncoder:
    """An encoder in the Hugging Face layout, read without any code that may lie beside it."""
    transformers = import_transformers()
    from transformers.models.auto import modeling_auto

    if not (folder / "config.json").is_file():
        raise UserError(f"--model {folder}: has no config.json, so it is neither a run nor a model")
    try:
        config = transformers.AutoConfig.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # of a damaged or an unknown description anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{folder / 'config.json'}: not an encoder's description ({reason})"
        ) from None
    # Encoders are what was pre-trained by filling gaps in a text, and classifies.
    fills = config.model_type in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    labels = config.model_type in modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
    if not (fills and labels) or config.is_encoder_decoder:
        raise UserError(
            f"--model {where}: a {config.model_type} is no encoder that classifies, as BERT, "
            "DistilBERT and RoBERTa are; a GPT-2 is for classification/train_gpt.py"
        )
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
        special = {
            name: str(token) for name, token in tokenizer.special_tokens_map.items()
            if isinstance(token, str)
        }  # fmt: skip
        encoding = EncoderTokenizer(tokenizer.backend_tokenizer, special)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"--model {where}: its tokenizer cannot be read ({reason}); it needs tokenizer.json, "
            "or vocab.txt, or vocab.json with merges.txt"
        ) from None
    architecture = (config.architectures or ["?"])[0]
    has_classifier = architecture.endswith("ForSequenceClassification")
    names = [config.id2label[number] for number in sorted(config.id2label)]
    return FoundEncoder(
        f"{where} ({architecture})", name, folder, config.to_dict(),
        names if has_classifier else None, encoding, False, learnt_from,
    )  # fmt: skip


def shape_of(found: FoundEncoder) -> EncoderConfig:
    """The longest row it takes, and how many tokens it has. Raises UserError if it cannot be
    built."""
    with torch.device("meta"):  # without any memory
        return _encoder(found, found.config).config


def build_encoder(
    found: FoundEncoder,
    labels: Sequence[str],
    train: str,
    seed: int,
    lora: LoRA | None = None,
    dropout: float | None = None,
) -> tuple[Encoder, str]:
    """The encoder that training starts from, on the CPU, frozen but for what `train` names; and
    where its weights come from, in words. It keeps its classifier if that has the same `labels`;
    else it gets a new one, whose weights depend on `seed` alone. "lora" gives it adapters that are
    like `lora`; GPT-2's default names of layers mean all linear layers of an encoder's blocks.
    `dropout` takes the place of the encoder's own.

    Raises UserError if the weights do not fit, if its logits change with the padding beside a text,
    or if `train` or `lora` names nothing that it has.
    """
    config = found.config | {
        "id2label": dict(enumerate(labels)),
        "label2id": {label: number for number, label in enumerate(labels)},
    }
    if dropout is not None:
        config |= dict.fromkeys(_dropouts(config), dropout)
    torch.manual_seed(seed)
    model = _encoder(found, config)
    trained = _trained_network(found, model)
    if found.labels == list(labels):
        model.network.load_state_dict(trained.state_dict())
        origin = f"trunk and head of {found.where}"
    else:
        model.network.base_model.load_state_dict(trained.base_model.state_dict())
        why = (
            f"the old one's labels were {', '.join(found.labels)}" if found.labels else "no old one"
        )
        origin = f"trunk, new head ({why}), of {found.where}"
    _check_pads(found, model)
    if train == "lora":
        _put_adapters(model, found, lora or LoRA())
        return model, origin
    choose_trainable(model, train)
    return model, origin


def _put_adapters(model: Encoder, found: FoundEncoder, lora: LoRA) -> None:
    """Put adapters on `model` that know whose weights they stand on."""
    on = model.name_of_blocks if lora.on == LoRA.on else lora.on
    sha256 = sha256_of(weight_files(found.folder))
    try:
        add_adapters(model, replace(lora, on=on, base=found.name, base_sha256=sha256))
    except ValueError as error:
        raise UserError(f"--lora-on {on}: {error}") from None


def adapt_encoder(lora: LoRA, model: Encoder) -> Encoder:
    """`model` with the trunk that adapters like `lora` stand on, and with such adapters; for
    gpt2.checkpoint.load_checkpoint. Raises UserError if this trunk is gone or has changed."""
    trunk = _trained_network(_find_base(lora), model).base_model
    model.network.base_model.load_state_dict(trunk.state_dict())
    add_adapters(model, lora)
    return model


def _find_base(lora: LoRA) -> FoundEncoder:
    if not hub_name(lora.base):
        check_there(lora)
    found = find_encoder(EncoderSettings(lora.base))
    check_unchanged(lora, sha256_of(weight_files(found.folder)))
    return found


def _encoder(found: FoundEncoder, config: dict[str, Any]) -> Encoder:
    try:
        return Encoder(new_network(config))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"--model {found.where}: cannot be built ({error})") from None


def _check_pads(found: FoundEncoder, model: Encoder) -> None:
    """The same text must have the same logits in any batch; FNet, without a mask, is refused."""
    tokens, lengths = fixed_rows(model.config.n_positions, model.config.vocab_size)
    beside_a_longer_one = compute_logits(model, tokens, lengths)[1:]
    alone = compute_logits(model, tokens[1:, : lengths[1]], lengths[1:])
    if not same_logits(alone, beside_a_longer_one):
        raise UserError(
            f"--model {found.where}: its logits change with the padding beside a text "
            f"({how_changed(alone, beside_a_longer_one)}); take another encoder"
        )


def _dropouts(config: dict[str, Any]) -> list[str]:
    """The shares of dropout among the values of `config`: every family calls its own otherwise."""
    return [
        name for name, value in config.items()
        if "dropout" in name and (value is None or type(value) in (int, float))
    ]  # fmt: skip


def _trained_network(found: FoundEncoder, model: Encoder) -> nn.Module:
    """A network like that of `model` with the weights of `found`, those of adapters merged."""
    if not found.is_checkpoint:
        return _read_network(found, model)
    return merge_encoder(load_checkpoint(found.folder, "classification", adapt_encoder)[0]).network


def _read_network(found: FoundEncoder, model: Encoder) -> nn.Module:
    """The network in the folder, as the network of `model` is made; what is missing above its
    blocks is random. Of a pytorch_model.bin nothing but tensors is read. Raises UserError."""
    network = model.network
    try:
        trained, loading = type(network).from_pretrained(
            str(found.folder), config=network.config, dtype=torch.float32, local_files_only=True,
            weights_only=True, ignore_mismatched_sizes=True, output_loading_info=True,
        )  # fmt: skip
    except Exception as error:  # damaged files raise whatever they like
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"--model {found.where}: its weights cannot be read ({reason})") from None
    head = {id(parameter) for parameter in model.head.parameters()}
    trunk = {name for name, p in network.named_parameters() if id(p) not in head}
    mismatched = {key if isinstance(key, str) else key[0] for key in loading["mismatched_keys"]}
    wrong = sorted(trunk & (set(loading["missing_keys"]) | mismatched))
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UserError(
            f"--model {found.where}: its weights have nothing that fits {', '.join(wrong[:3])}"
            f"{more}"
        )
    return trained


def encoder_learning_rate(train: str) -> float:
    """The peak rate where none is given: the field's usual values (Devlin et al. 2019, "BERT:
    Pre-training of Deep Bidirectional Transformers", appendix A.3), of lora GPT-2's."""
    return {"head": 1e-3, "lora": 2e-4}.get(train, 5e-5)
