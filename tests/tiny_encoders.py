"""Encoders of a few thousand weights, in the folders that transformers writes."""

import string

import pytest
import torch
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    DistilBertConfig,
    DistilBertForMaskedLM,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
)

LABELS = ["bad", "good"]
TRAIN = "baselines/train_encoder.py"
SHORT = "--max-train 32 --max-validation 8 --max-test 20 --max-steps 2 --max-length 32".split()

WORDS = [
    "good",
    "bad",
    "film",
    "story",
    "dull",
    "fine",
    "great",
    "what",
    "a",
    "scene",
    "the",
    "##s",
]
POSITIONS = 64


def _wordpieces():
    letters = [*string.ascii_lowercase, *string.digits, *string.punctuation]
    words = dict.fromkeys([*WORDS, *letters, *(f"##{letter}" for letter in letters)])
    vocabulary = ["[PAD]", *(f"[unused{n}]" for n in range(9)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    ids = {token: number for number, token in enumerate([*vocabulary, *words])}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = ("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"])
    tokenizer.post_processor = processors.BertProcessing(*ends)
    # as all-MiniLM-L6-v2 has them: rows are cut and padded by the file itself
    tokenizer.enable_truncation(16)
    tokenizer.enable_padding(length=16)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]",
        sep_token="[SEP]", mask_token="[MASK]",
    )  # fmt: skip


def _bytes():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator([" ".join(WORDS)] * 3, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", cls_token="<s>",
        sep_token="</s>", mask_token="<mask>", bos_token="<s>", eos_token="</s>",
    )  # fmt: skip


def _sizes(width, layers):
    return {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": 2,
            "intermediate_size": 2 * width, "max_position_embeddings": POSITIONS}  # fmt: skip


def save_tiny_encoder(folder, family):
    """Write a tiny one of "distilbert", "bert", "roberta", or "minilm" (BERT's trunk alone, more
    narrow than deep, as all-MiniLM-L6-v2 is saved) into `folder`."""
    tokenizer = _bytes() if family == "roberta" else _wordpieces()
    size = len(tokenizer)
    torch.manual_seed(0)
    if family == "distilbert":
        sizes = {"n_layers": 2, "n_heads": 2, "dim": 16, "hidden_dim": 32}
        config = DistilBertConfig(vocab_size=size, max_position_embeddings=POSITIONS, **sizes)
        model = DistilBertForMaskedLM(config)
    elif family == "roberta":
        sizes = _sizes(16, 2) | {"max_position_embeddings": POSITIONS + 2}
        model = RobertaForMaskedLM(RobertaConfig(vocab_size=size, **sizes, type_vocab_size=1))
    elif family == "bert":
        model = BertForMaskedLM(BertConfig(vocab_size=size, **_sizes(16, 2)))
    else:
        model = BertModel(BertConfig(vocab_size=size, **_sizes(12, 6)))
    for parameter in model.parameters():
        if parameter.dim() >= 2:  # with weights as small as they begin, all texts look alike
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def nothing_slow(monkeypatch):
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda *given, **named: None)
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


@pytest.fixture
def distilbert(tmp_path):
    return save_tiny_encoder(tmp_path / "tiny", "distilbert")
