"""Weights in the Hugging Face layout: parity with transformers both ways."""

import pytest
import tiktoken
import torch
from test_model import make_rougher, ragged_batch
from torch.nn import functional as F

from gpt2.checkpoint import Recipe, TrainingState, save_checkpoint
from gpt2.generation import SamplingSettings, generate
from gpt2.heads import ClassificationHead, LanguageModelHead
from gpt2.model import GPT2, GPT2Config
from gpt2.tokenizer import get_encoding
from gpt2.weights.building import ModelSettings, build_model, choose_config, choose_pooling
from gpt2.weights.export import export
from gpt2.weights.tokenizer_files import write_tokenizer_files

VOCABULARY = 300
LABELS = ["bad", "fair", "good"]
# name -> shape, and how transformers stores it
SHAPES = {
    "small vocabulary": (GPT2Config(2, 2, 16, 64, VOCABULARY, 0.0), {}),
    "odd head count": (GPT2Config(2, 3, 24, 64, VOCABULARY, 0.0), {}),
    "context 1024": (GPT2Config(1, 2, 16, 1024, VOCABULARY, 0.0), {}),
    "untied head": (
        GPT2Config(2, 2, 16, 64, VOCABULARY, 0.0, tie_word_embeddings=False), {}
    ),
    "shards": (GPT2Config(3, 2, 16, 64, VOCABULARY, 0.0), {"max_shard_size": "15KB"}),
}  # fmt: skip

SMALL = SHAPES["small vocabulary"][0]


def small_encoding(size=VOCABULARY):
    """The first merges of `mini`: any beginning of a byte-pair encoding is one itself."""
    ranks = {token: rank for token, rank in get_encoding("mini")._mergeable_ranks.items()
             if rank < size - 1}  # fmt: skip
    pattern = get_encoding("mini")._pat_str
    return tiktoken.Encoding("small", pat_str=pattern, mergeable_ranks=ranks,
                             special_tokens={"<|endoftext|>": size - 1})  # fmt: skip


def their_model(config, head="LMHeadModel", **more):
    """A transformers GPT-2 with rough random weights."""
    import transformers

    theirs = transformers.GPT2Config(
        n_layer=config.n_layer, n_head=config.n_head, n_embd=config.n_embd,
        n_positions=config.n_positions, vocab_size=config.vocab_size, resid_pdrop=0.0,
        embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=VOCABULARY - 1, eos_token_id=VOCABULARY - 1,
        tie_word_embeddings=config.tie_word_embeddings, **more,
    )  # fmt: skip
    torch.manual_seed(0)
    model = getattr(transformers, f"GPT2{head}")(theirs)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.endswith(("wte.weight", "wpe.weight")):
                parameter.add_(0.15 * torch.randn_like(parameter))
    return model.eval()


def save_theirs(model, folder, **how):
    model.save_pretrained(folder, **how)
    write_tokenizer_files(small_encoding(), folder)
    return folder


def load_ours(folder, make_head=LanguageModelHead, labels=None):
    """As `--model FOLDER` does."""
    settings = ModelSettings(model=str(folder))
    config, _ = choose_config(settings)
    model, origin = build_model(settings, config, make_head, "all", 1, labels)
    return model.eval(), origin


@pytest.fixture(params=SHAPES)
def shape(request):
    return SHAPES[request.param]


def assert_same_language_model(ours, theirs):
    """Logits, loss, greedy text, and logits after a step of training (a copy in the place of the
    tied head would show there)."""
    config = ours.config
    tokens, lengths = ragged_batch((config.n_positions, config.n_positions), config.vocab_size)
    with torch.no_grad():
        logits, expected = ours(tokens, lengths), theirs(tokens, labels=tokens)
    assert logits.abs().max() > 0.1
    torch.testing.assert_close(logits, expected.logits, atol=1e-4, rtol=0)
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    torch.testing.assert_close(loss, expected.loss, atol=1e-5, rtol=0)

    prompt = tokens[:1, :9]
    text = theirs.generate(prompt, max_new_tokens=20, do_sample=False, pad_token_id=0,
                           eos_token_id=None)  # fmt: skip
    greedy = SamplingSettings(max_new_tokens=20)
    assert generate(ours, prompt.tolist(), greedy, -1) == text[:, 9:].tolist()

    for model, loss in (
        (theirs, theirs(tokens, labels=tokens).loss),
        (ours, F.cross_entropy(ours(tokens, lengths)[:, :-1].flatten(0, 1),
                               tokens[:, 1:].flatten())),
    ):  # fmt: skip
        loss.backward()
        torch.optim.SGD(model.parameters(), lr=1.0).step()
    with torch.no_grad():
        after, expected = ours(tokens, lengths), theirs(tokens).logits
    assert (after - logits).abs().max() > 0.01
    torch.testing.assert_close(after, expected, atol=1e-4, rtol=0)


def test_their_language_model_here(shape, tmp_path):
    config, how = shape
    theirs = their_model(config)
    ours, origin = load_ours(save_theirs(theirs, tmp_path, **how))
    assert (tmp_path / "model.safetensors.index.json").is_file() == bool(how)
    assert origin == f"trunk and head of {tmp_path} (GPT2LMHeadModel)"
    assert (ours.head.weight is ours.wte.weight) == config.tie_word_embeddings
    assert_same_language_model(ours, theirs)


@torch.no_grad()
def test_their_fresh_language_model_here(tmp_path):
    """Fresh projections are so small that the last norm sees little but embeddings, and its epsilon
    shows; behind rough ones it does not."""
    import transformers

    theirs = transformers.GPT2LMHeadModel(their_model(SMALL).config).eval()
    ours, _ = load_ours(save_theirs(theirs, tmp_path))
    tokens, lengths = ragged_batch((64, 64), VOCABULARY)
    torch.testing.assert_close(ours(tokens, lengths), theirs(tokens).logits, atol=1e-4, rtol=0)


def save_ours(folder, config, head, settings):
    torch.manual_seed(1)
    model = make_rougher(GPT2(config, head))
    tasks = {"labels": "classification", "template": "instruction"}
    task = next((task for key, task in tasks.items() if key in settings), "pretraining")
    save_checkpoint(folder, model, Recipe(task, small_encoding(), settings), TrainingState())
    return model.eval()


TEMPLATE = {"with_input": "{instruction} {input}:", "without_input": "{instruction}:"}


def test_our_language_model_there(shape, tmp_path, capsys):
    from transformers import AutoModelForCausalLM

    config, _ = shape
    settings = {"template": TEMPLATE, "max_length": 64}
    ours = save_ours(tmp_path / "best", config, LanguageModelHead(config), settings)
    export(tmp_path / "best", tmp_path / "out")
    theirs, loading = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(loading.values()), loading
    assert_same_language_model(ours, theirs.eval())


def mixed_batch():
    """Tokens and lengths, and the same tokens padded with `pad` as transformers wants them."""
    tokens, lengths = ragged_batch((7, 1, 30, 4), VOCABULARY - 1)
    pads = torch.arange(30) >= lengths[:, None]
    return tokens, lengths, tokens.masked_fill(pads, VOCABULARY - 1), (~pads).long()


def assert_same_classifier(ours, theirs):
    tokens, lengths, padded, mask = mixed_batch()
    with torch.no_grad():
        logits = ours(tokens, lengths)
        for attention_mask in (None, mask):
            expected = theirs(padded, attention_mask=attention_mask).logits
            torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
    assert logits.abs().max() > 0.1


def test_their_classifier_here(shape, tmp_path):
    config, how = shape
    theirs = their_model(
        config, "ForSequenceClassification", pad_token_id=VOCABULARY - 1,
        id2label=dict(enumerate(LABELS)), label2id={n: i for i, n in enumerate(LABELS)},
    )  # fmt: skip
    save_theirs(theirs, tmp_path, **how)
    pooling = choose_pooling(ModelSettings(model=str(tmp_path)), "")
    assert pooling == "last"
    ours, origin = load_ours(tmp_path, lambda c: ClassificationHead(c, 3, pooling), LABELS)
    assert origin.startswith("trunk and head")
    assert_same_classifier(ours, theirs)


def test_our_classifier_there(shape, tmp_path, capsys):
    from transformers import AutoModelForSequenceClassification

    config, _ = shape
    head = ClassificationHead(config, 3, "last")
    settings = {"labels": LABELS, "max_length": 64}
    ours = save_ours(tmp_path / "best", config, head, settings)
    export(tmp_path / "best", tmp_path / "out")
    theirs, loading = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(loading.values()), loading
    assert list(theirs.config.id2label.values()) == LABELS
    assert_same_classifier(ours, theirs.eval())
