"""What docs/python.md promises beside its own snippets: paths, one text or many, attention."""

import pytest
import torch
from test_model import (
    SMALL,
    make_model,
    make_rougher,
    ragged_batch,
    to_transformers,
    transformers_config,
)

from classification.data import IMDbDataset
from classification.predict import predict
from gpt2.attention_weights import attention_weights
from gpt2.checkpoint import Recipe, TrainingState, load_checkpoint, save_checkpoint
from gpt2.heads import ClassificationHead, LanguageModelHead
from gpt2.model import GPT2, GPT2Config
from gpt2.tokenizer import encode_texts, get_encoding
from instruction.evaluation import AnswerSettings
from instruction.respond import answer

ENCODING = get_encoding("mini")
TEMPLATE = {"with_input": "{instruction} ({input}):", "without_input": "{instruction}:"}


@pytest.fixture
def classifier(tmp_path):
    """A folder with an untrained classifier in it."""
    config = GPT2Config(2, 2, 16, 64, 8192, 0.0)
    torch.manual_seed(0)
    settings = {"labels": ["bad", "good"], "max_length": 64}
    recipe = Recipe("classification", ENCODING, settings)
    model = GPT2(config, ClassificationHead(config, 2))
    (tmp_path / "run").mkdir()
    save_checkpoint(tmp_path / "run/best", model, recipe, TrainingState())
    return tmp_path / "run"


def test_a_run_is_loaded_from_a_string_or_a_path(classifier):
    (one, _), (other, _) = (
        load_checkpoint(p, "classification") for p in (str(classifier), classifier)
    )
    assert torch.equal(one.head.score.weight, other.head.score.weight)


def test_one_text_alone_is_labelled_as_in_a_list(classifier):
    model, recipe = load_checkpoint(classifier, "classification")
    ((text, alone),) = predict(model, recipe, "A fine film.")
    assert text == "A fine film." and set(alone) == {"bad", "good"}
    of_list = list(predict(model, recipe, ["A fine film.", " ", "Dull"]))
    assert of_list[0] == (text, pytest.approx(alone))
    assert of_list[1] == (" ", None)


def test_a_dataset_of_one_string_is_refused():
    with pytest.raises(TypeError, match=r"a list of texts.*'A fine film\.'"):
        IMDbDataset("A fine film.", [1] * 12, ENCODING, 64)
    assert len(encode_texts(ENCODING, ("a", "b"))) == 2


def test_questions_are_instructions_pairs_or_the_input_of_the_only_instruction():
    config = GPT2Config(2, 2, 32, 128, 8192, 0.0)
    torch.manual_seed(0)
    model = make_rougher(GPT2(config, LanguageModelHead(config)).eval())
    recipe = Recipe("instruction", ENCODING, {"template": TEMPLATE, "instruction": ""})

    def ask(questions):
        return answer(model, recipe, questions, AnswerSettings(8), precision="float32")

    found = ask(["Name a colour.", ("Is it good?", "Yes."), ("Yes.", "")])
    assert len(set(found)) == 3
    assert ask("Name a colour.") == found[:1]
    assert ask(["Yes."]) == found[2:]
    recipe.settings["instruction"] = "Is it good?"
    assert ask("Yes.") == found[1:2]
    assert ask([("Name a colour.", "")]) == found[:1]


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_attention_weights_are_those_of_transformers(layer):
    from transformers import GPT2LMHeadModel

    model = make_rougher(make_model())
    config = transformers_config(SMALL, attn_implementation="eager")
    reference = to_transformers(model, GPT2LMHeadModel(config))
    tokens, _ = ragged_batch((40, 40))
    with torch.no_grad():
        expected = reference(tokens, output_attentions=True).attentions[layer]
    found = attention_weights(model, tokens, layer)
    assert found.shape == (2, SMALL.n_head, 40, 40)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_attention_weights_of_each_token_sum_to_one_over_what_it_may_see():
    model = make_rougher(make_model())
    tokens, lengths = ragged_batch()
    found = attention_weights(model, tokens, 2)
    torch.testing.assert_close(found.sum(dim=3), torch.ones(4, SMALL.n_head, 9))
    assert (found.triu(1) == 0).all()
    short = int(lengths[3])  # a row alone has the weights that it has beside longer ones
    alone = attention_weights(model, tokens[3:, :short], 2)
    torch.testing.assert_close(found[3:, :, :short, :short], alone)
    with pytest.raises(IndexError):
        attention_weights(model, tokens, 3)
