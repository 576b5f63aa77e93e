"""Exported folders: transformers' pipelines give this project's labels and greedy text, the files
say what they should, and what was fine-tuned there comes back."""

import shutil
import subprocess
import sys

import pytest
import torch
from conftest import REPOSITORY, refused
from test_export_scripts import INSTRUCT, TINY, TRAIN
from test_model import make_rougher
from test_pretrained import LABELS, SMALL, TEMPLATE, VOCABULARY, save_ours, small_encoding

from classification.predict import predict
from gpt2.checkpoint import Recipe, TrainingState, load_checkpoint, save_checkpoint
from gpt2.generation import SamplingSettings, generate
from gpt2.heads import POOLINGS, ClassificationHead, LanguageModelHead
from gpt2.model import GPT2
from gpt2.weights.building import ModelSettings, build_model, choose_config
from gpt2.weights.export import export
from instruction.template import Template

TEXTS = [
    "a fine film",
    "Dull.",
    "It ends in the pad <|endoftext|>",
    "<|endoftext|>",
    "two<br /><BR>lines,  four\t\n spaces \x1c\x85\u3000 end ",
    "naïve café, 映画, 🎬! I'd say so, wouldn't you?",
    "x",
    "a word " * 60,
]
LONGEST = 48


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A classifier's checkpoint and its exported folder."""
    folder = tmp_path_factory.mktemp("classifier")
    torch.manual_seed(1)
    model = make_rougher(GPT2(SMALL, ClassificationHead(SMALL, 3, "last")))
    with torch.no_grad():  # so that the tokens, and not the biases, decide on the label
        model.ln_f.bias.zero_()
        model.wte.weight.mul_(50)
    settings = {"labels": LABELS, "max_length": LONGEST}
    checkpoint = Recipe("classification", small_encoding(), settings)
    save_checkpoint(folder / "best", model, checkpoint, TrainingState())
    export(folder / "best", folder / "out")
    return folder / "best", folder / "out"


@pytest.fixture(scope="module")
def answerer(tmp_path_factory):
    """An instruction model's checkpoint and its exported folder."""
    folder = tmp_path_factory.mktemp("answerer")
    settings = {"template": TEMPLATE, "max_length": LONGEST}
    save_ours(folder / "best", SMALL, LanguageModelHead(SMALL), settings)
    export(folder / "best", folder / "out")
    return folder / "best", folder / "out"


def probabilities_here(checkpoint_folder, texts):
    model, checkpoint = load_checkpoint(checkpoint_folder, "classification")
    answers = predict(model, checkpoint, texts, precision="float32")
    return [answer for _, answer in answers]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_classification_pipeline_gives_our_labels(classifier, batch_size):
    from transformers import pipeline

    best, out = classifier
    ours = probabilities_here(best, TEXTS)
    assert len({max(answer, key=answer.get) for answer in ours}) > 1
    pipe = pipeline("text-classification", model=str(out), top_k=None)
    theirs = pipe(TEXTS, truncation=True, batch_size=batch_size)
    for text, expected, answer in zip(TEXTS, ours, theirs, strict=True):
        found = {entry["label"]: entry["score"] for entry in answer}
        assert found == pytest.approx(expected, abs=1e-5), text


def test_the_last_tokens_of_a_text_are_kept_there_too(tmp_path, capsys):
    """`--truncation tail`: two texts that differ in their first words alone get one answer here,
    and the pipeline gives the same."""
    from transformers import pipeline

    settings = {"labels": LABELS, "max_length": 6, "truncation": "tail"}
    head = ClassificationHead(SMALL, 3, "last")
    save_ours(tmp_path / "best", SMALL, head, settings)
    export(tmp_path / "best", tmp_path / "out")
    texts = ["dull words first, and a good end", "fine words first, and a good end", "an end"]
    ours = probabilities_here(tmp_path / "best", texts)
    assert ours[0] == ours[1] != ours[2]
    pipe = pipeline("text-classification", model=str(tmp_path / "out"), top_k=None)
    for expected, answer in zip(ours, pipe(texts, truncation=True), strict=True):
        found = {entry["label"]: entry["score"] for entry in answer}
        assert found == pytest.approx(expected, abs=1e-5)
    assert "the last 6 tokens" in (tmp_path / "out/README.md").read_text()


def test_an_empty_text_disturbs_no_other(classifier):
    """Here it has no label. There it is all padding, and gets some label beside other texts."""
    from transformers import pipeline

    best, out = classifier
    texts = ["a fine film", "", "Dull."]
    assert probabilities_here(best, texts)[1] is None
    pipe = pipeline("text-classification", model=str(out), top_k=None)
    alone = pipe(["a fine film", "Dull."])
    together = pipe(texts, batch_size=3)
    for a, b in zip([together[0], together[2]], alone, strict=True):
        assert {e["label"]: e["score"] for e in a} == pytest.approx(
            {e["label"]: e["score"] for e in b}, abs=1e-5
        )


CONVERSATIONS = [
    ("Say {hi}.", ""),
    ("Is it 'good' or \"bad\"?\n", "\\n 🎬 {instruction} {{ x }}"),
    ("Do {input}.", "{% if %}"),
]


@pytest.mark.parametrize(
    "template",
    [Template(), Template(**TEMPLATE), Template("é{input}🎬'{instruction}", "\\n{instruction}")],
)
def test_the_chat_template_is_the_prompt(template, tmp_path, capsys):
    from transformers import AutoTokenizer

    settings = {"template": vars(template), "max_length": LONGEST}
    save_ours(tmp_path / "best", SMALL, LanguageModelHead(SMALL), settings)
    export(tmp_path / "best", tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    for instruction, text in CONVERSATIONS:
        prompt = template.prompt(instruction, text)
        message = {"role": "user", "content": instruction, "input": text}
        for messages in ([message], [{"role": "user", "content": instruction}])[: 2 - bool(text)]:
            found = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
            assert found == prompt
            tokens = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
            assert tokens["input_ids"] == small_encoding().encode_ordinary(prompt)
        # For training there: the answer follows, and ends with the end token.
        answered = [message, {"role": "assistant", "content": "Yes."}]
        tokens = tokenizer.apply_chat_template(answered)["input_ids"]
        assert tokens[-1] == VOCABULARY - 1
        assert tokenizer.decode(tokens[:-1]) == prompt + "Yes."


def test_the_generation_pipeline_gives_our_greedy_text(answerer):
    from transformers import pipeline

    best, out = answerer
    model, checkpoint = load_checkpoint(best, "instruction")
    encoding, template = checkpoint.encoding, Template(**TEMPLATE)
    pipe = pipeline("text-generation", model=str(out))
    assert pipe.model.generation_config.max_new_tokens == SamplingSettings().max_new_tokens
    greedy = SamplingSettings(max_new_tokens=30)
    for instruction, text in (("Name a colour", ""), ("Is it?", "a fine film")):
        prompt = encoding.encode_ordinary(template.prompt(instruction, text))
        (expected,) = generate(model, [prompt], greedy, encoding.eot_token)
        expected = encoding.decode([token for token in expected if token != encoding.eot_token])
        chat = [{"role": "user", "content": instruction, "input": text}]
        (answer,) = pipe(chat, max_new_tokens=30, return_full_text=False)
        assert answer["generated_text"] == expected
        (answer,) = pipe(template.prompt(instruction, text), max_new_tokens=30,
                         return_full_text=False)  # fmt: skip
        assert answer["generated_text"] == expected


def test_generation_there_ends_where_ours_ends(tmp_path, capsys):
    """A model that has learnt one answer by heart: its end token ends both texts."""
    from transformers import pipeline

    encoding, config = small_encoding(), SMALL
    torch.manual_seed(0)
    model = GPT2(config, LanguageModelHead(config))
    prompt = encoding.encode_ordinary("Say hi:")
    row = torch.tensor([[*prompt, *encoding.encode_ordinary(" hi there"), encoding.eot_token]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(60):
        logits = model(row[:, :-1], torch.tensor([row.size(1) - 1]))
        torch.nn.functional.cross_entropy(logits[0], row[0, 1:]).backward()
        optimizer.step()
        optimizer.zero_grad()
    settings = {"template": TEMPLATE, "max_length": LONGEST}
    save_checkpoint(
        tmp_path / "best", model, Recipe("instruction", encoding, settings), TrainingState()
    )
    export(tmp_path / "best", tmp_path / "out")
    pipe = pipeline("text-generation", model=str(tmp_path / "out"))
    chat = [{"role": "user", "content": "Say hi"}]
    (answer,) = pipe(chat, return_full_text=False)
    assert answer["generated_text"] == " hi there"


# ---- the files


def test_files_are_complete_and_may_take_half_the_space(answerer, tmp_path, capsys):
    from transformers import AutoModelForCausalLM

    best, out = answerer
    names = {path.name for path in out.iterdir()}
    assert names == {"README.md", "config.json", "generation_config.json", "model.safetensors",
                     "vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json",
                     "special_tokens_map.json", "chat_template.jinja"}  # fmt: skip
    export(best, tmp_path / "half", "float16")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "half").dtype == torch.float16
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (out, tmp_path / "half")]
    assert sizes[1] < 0.6 * sizes[0]


# ---- back again


def one_step_there(folder, result, kind, batch):
    """Load with transformers, take one step, and save model and tokenizer as a user would."""
    import transformers

    model = getattr(transformers, f"AutoModelFor{kind}").from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model(**batch).loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.5).step()
    model.save_pretrained(result)
    tokenizer.save_pretrained(result)
    return model.eval()


@torch.no_grad()
def test_a_classifier_fine_tuned_there_comes_back(classifier, tmp_path):
    _, out = classifier
    tokens = torch.arange(24).view(2, 12)
    batch = {"input_ids": tokens, "labels": torch.tensor([0, 2])}
    with torch.enable_grad():
        theirs = one_step_there(out, tmp_path / "there", "SequenceClassification", batch)
    settings = ModelSettings(model=str(tmp_path / "there"))
    config, encoding = choose_config(settings)
    assert encoding.encode_ordinary(TEXTS[0]) == small_encoding().encode_ordinary(TEXTS[0])
    make_head = lambda c: ClassificationHead(c, 3, "last")  # noqa: E731
    ours, origin = build_model(settings, config, make_head, "all", 1, LABELS)
    assert origin.startswith("trunk and head")
    logits = ours.eval()(tokens, torch.tensor([12, 12]))
    torch.testing.assert_close(logits, theirs(tokens).logits, atol=1e-4, rtol=0)
    before, _ = load_checkpoint(classifier[0], "classification")
    assert (logits - before(tokens, torch.tensor([12, 12]))).abs().max() > 0.01


@torch.no_grad()
def test_a_language_model_fine_tuned_there_comes_back(answerer, tmp_path):
    _, out = answerer
    tokens = torch.arange(24).view(2, 12)
    with torch.enable_grad():
        theirs = one_step_there(
            out, tmp_path / "there", "CausalLM", {"input_ids": tokens, "labels": tokens}
        )
    settings = ModelSettings(model=str(tmp_path / "there"))
    config, encoding = choose_config(settings)
    assert encoding.eot_token == VOCABULARY - 1
    ours, _ = build_model(settings, config, LanguageModelHead, "all", 1)
    logits = ours.eval()(tokens, torch.tensor([12, 12]))
    torch.testing.assert_close(logits, theirs(tokens).logits, atol=1e-4, rtol=0)


# ---- the commands


@torch.no_grad()
@torch.no_grad()
def test_the_trunk_is_really_taken_over(answerer):
    best, _ = answerer
    settings = ModelSettings(model=str(best), dropout=0.3)
    config, _ = choose_config(settings)
    make_head = lambda c: ClassificationHead(c, 3, "mean")  # noqa: E731
    model, _ = build_model(settings, config, make_head, "head", 1, LABELS)
    trained, _ = load_checkpoint(best, "instruction")
    for name, parameter in trained.named_parameters():
        assert torch.equal(parameter, model.get_parameter(name)), name
    assert model.config.dropout == model.h[0].mlp.dropout == 0.3
    assert [n for n, p in model.named_parameters() if p.requires_grad] == ["head.score.weight"]


def test_bad_input_to_models_and_exports(call_script, classifier, tmp_path):
    best, out = classifier
    refused(call_script(TRAIN, "--model", "gtp2"), "--model gtp2", "did you mean gpt2?")
    refused(call_script(TRAIN, "--model", "nothing/here"), "neither a known name nor a folder")
    refused(call_script(TRAIN, "--model", tmp_path), "no config.json")
    refused(call_script(TRAIN, "--init", "pretrained", "--model", "scratch"), "--init random")
    refused(call_script(TRAIN, "--model", best, "--n-layer", 3), "--n-layer 3", "--model scratch")
    run = shutil.copytree(best, tmp_path / "run/best").parent
    (run / "config.json").write_text("{}")
    (run / "metrics.jsonl").touch()
    for script in (TRAIN, INSTRUCT, "pretraining/pretrain.py"):
        for model in (run, run / "best"):
            done = call_script(script, "--model", model, "--out", run, "--overwrite")
            refused(done, "is what --model names", "another folder")
    assert (run / "best/model.safetensors").is_file()
    refused(call_script(TRAIN, "--model", out, "--max-length", 65), "--max-length 65", "64")
    for pooling in set(POOLINGS) - {"last"}:
        done = call_script(TRAIN, *TINY, "--pooling", pooling, "--export", "new")
        refused(done, f"pooling {pooling} cannot be exported", "last token", "--pooling last")
    refused(call_script(TRAIN, *TINY, "--pooling", "last", "--export", out), "not an empty folder")

    command = "gpt2/weights/export.py"
    refused(call_script(command, best, out), "not an empty folder")
    refused(call_script(command, out, tmp_path / "new"), "is not a run of this project")
    refused(call_script(command, tmp_path, tmp_path / "new"), "no config.json")
    (tmp_path / "file").touch()
    refused(call_script(command, best, tmp_path / "file/new"), "cannot be written")
    done = call_script(command, best, tmp_path / "new", "--dtype", "int8")
    refused(done, "--dtype", "float16")
    assert not (tmp_path / "runs").exists() and not (tmp_path / "new").exists()


def test_a_full_disk_leaves_no_half_of_a_folder(classifier, tmp_path):
    """A process that may not write files of more than 10 kB stands in for a full disk."""
    import resource

    done = subprocess.run(
        [sys.executable, "-m", "gpt2.weights.export", classifier[0], tmp_path / "new"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000)),
        cwd=REPOSITORY, capture_output=True, text=True,
    )  # fmt: skip
    refused(done, "cannot be written", "File too large")
    assert not list(tmp_path.iterdir())


def test_exporting_twice_gives_the_same_bytes(classifier, tmp_path, capsys):
    best, out = classifier
    export(best, tmp_path / "out")
    for file in out.iterdir():
        assert file.read_bytes() == (tmp_path / "out" / file.name).read_bytes(), file.name
