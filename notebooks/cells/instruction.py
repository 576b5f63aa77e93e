# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Six chapters: teach GPT-2 to follow instructions
#
# The same model and the same loop as in [classification.ipynb](classification.ipynb), but with the head that GPT-2 was born
# with: it says which token comes next. From 272 instructions with answers it learns to answer and to stop. It is a small
# model that knows little, so expect the form of an answer, and seldom the right one. Everything that is called is the
# project's own code, the same that `python instruction/instruction_finetuning.py` calls; `load_splits?` shows what a
# function does.
#
# It takes about a minute on a laptop, and nothing is downloaded. Each chapter ends with exercises. Put your answer in the
# place of `...`, run the cell, then the one below it, which says whether the answer is right. Under each exercise a solution
# is folded away.
#
# Install first, in a terminal, in the repository: `pip install -e '.[notebook]'`, then `jupyter lab notebooks`.
# On Colab (`https://colab.research.google.com/github/OWNER/REPOSITORY/blob/main/notebooks/instruction.ipynb`, with
# the address of your copy of the repository) run this instead, in a cell of its own:
#
# ```
# !git clone https://github.com/OWNER/REPOSITORY project
# %cd project
# %pip install -q -e '.[rouge]'
# ```

# %%
import os

import matplotlib.pyplot as plt
import numpy as np
import polars as pl
import torch
from IPython.display import Image, Markdown, display

# Training steps in chapter 4. Fewer are quicker and teach less: MAX_STEPS=10 jupyter lab notebooks
MAX_STEPS = int(os.environ.get("MAX_STEPS", 68))


def check(answer, is_right, hint):
    """Say whether `answer` is right, as the function `is_right` sees it."""
    try:
        if answer is ...:
            print("not tried yet")
        else:
            print("right!" if is_right(answer) else f"not yet. {hint}")
    except Exception as error:  # an answer of quite another kind
        print(f"not yet. {hint} ({type(error).__name__}: {error})")


# %% [markdown]
# ## 1. Data
#
# A row is an instruction, perhaps an input that it is about, and the answer that is to be learnt.

# %%
from gpt2.weights.building import ModelSettings, build_model, choose_config, count_parameters
from instruction.data import load_splits, print_splits
from instruction.sources import DataSettings
from instruction.template import Template

config, encoding = choose_config(ModelSettings())  # the shape and the tokens of mini
template = Template()
splits = load_splits(DataSettings(), template, encoding, seed=1)
print_splits(splits)
with pl.Config(fmt_str_lengths=200, tbl_width_chars=120, tbl_hide_dataframe_shape=True):
    display(splits.train.head(4))

# %% [markdown]
# The model sees one text. The template makes it: Alpaca's, in two forms, with and without an input. It ends where the
# answer begins, and an answer that is asked for later must be asked for in the same form.

# %%
row = splits.train.filter(pl.col("input") != "").row(0, named=True)
print(template.prompt(row["instruction"], row["input"]) + row["output"])

# %% [markdown]
# Answers are short here, which suits a small model.

# %%
figure, axis = plt.subplots(figsize=(7, 2.6))
for column in ("instruction", "output"):
    lengths = splits.train[column].str.split(" ").list.len()
    axis.hist(
        lengths, bins=range(0, 72, 3), alpha=0.6, label=f"{column}, median {lengths.median():.0f}"
    )
axis.set(xlabel="words", ylabel="rows", title=f"{len(splits.train)} training rows")
axis.legend()
plt.show()

# %% [markdown]
# **Exercise 1.1.** How many of the training rows have an input?
#
# <details><summary>A solution</summary>
#
# ```python
# with_input = (splits.train["input"] != "").sum()
# ```
#
# </details>

# %%
with_input = ...

# %% cellView="form" jupyter={"source_hidden": true}
# @title check 1.1
check(
    with_input,
    lambda count: count == sum(bool(text) for text in splits.train["input"]),
    "print_splits has said it.",
)

# %% [markdown]
# **Exercise 1.2.** Make the prompt for the instruction "Translate into French." and the input "Good morning.".
#
# <details><summary>A solution</summary>
#
# ```python
# french = template.prompt("Translate into French.", "Good morning.")
# ```
#
# </details>

# %%
french = ...

# %% cellView="form" jupyter={"source_hidden": true}
# @title check 1.2
check(
    french,
    lambda text: text.endswith("### Input:\nGood morning.\n\n### Response:\n") and "French" in text,
    "template.prompt takes both.",
)

# %% [markdown]
# ## 2. Model
#
# `LanguageModelHead` gives, for each position, a number for each of the 8,192 tokens: how likely it is to come next. Its
# matrix is `wte`, the one that turns tokens into vectors on the way in: one tensor for both.

# %%
from gpt2.heads import LanguageModelHead

model, origin = build_model(ModelSettings(), config, LanguageModelHead, "all", seed=1)
model.eval()
print(f"{origin}: {count_parameters(model)[0]:,} parameters")
print("head and wte are one tensor:", model.head.weight is model.wte.weight)

# %% [markdown]
# What does it expect after these words?

# %%
words = "The film is a beautiful"
tokens = torch.tensor([encoding.encode_ordinary(words)])
with torch.no_grad():
    logits = model(tokens, torch.tensor([tokens.size(1)]))  # (1, T, 8192)
likeliest = logits[0, -1].softmax(dim=0).topk(10)

figure, axis = plt.subplots(figsize=(6, 3))
pieces = [repr(encoding.decode([token])) for token in likeliest.indices.tolist()]
axis.barh(pieces, likeliest.values)
axis.invert_yaxis()
axis.set(xlabel="probability", title=f"after “{words}”")
plt.show()

# %% [markdown]
# **Exercise 2.1.** How many more parameters would the model have if head and `wte` were two tensors?
#
# <details><summary>A solution</summary>
#
# ```python
# more = config.vocab_size * config.n_embd
# ```
#
# </details>

# %%
more = ...

# %% cellView="form" jupyter={"source_hidden": true}
# @title check 2.1
check(more, lambda count: count == model.wte.weight.numel(), "A vector for each token.")

# %% [markdown]
# **Exercise 2.2.** Which token does the model think likeliest after "Once upon a"? Its text, as `encoding.decode` gives it.
#
# <details><summary>A solution</summary>
#
# ```python
# tokens = torch.tensor([encoding.encode_ordinary("Once upon a")])
# with torch.no_grad():
#     logits = model(tokens, torch.tensor([tokens.size(1)]))
# likely = encoding.decode([logits[0, -1].argmax().item()])
# ```
#
# </details>

# %%
likely = ...

# %% cellView="form" jupyter={"source_hidden": true}
# @title check 2.2
_tokens = torch.tensor([encoding.encode_ordinary("Once upon a")])
with torch.no_grad():
    _last = model(_tokens, torch.tensor([_tokens.size(1)]))[0, -1]
check(
    likely,
    lambda text: text == encoding.decode([_last.argmax().item()]),
    "The last position, the largest logit.",
)

# %% [markdown]
# ## 3. Tokens
#
# `InstructionDataset` encodes prompt and answer. A row has tokens, and for each of them a target: the token that follows.
# Inside the prompt the target is -100, which no loss is taken on: the model learns to answer, not to ask. The last target
# is `<|endoftext|>`: it learns to stop as well.

# %%
from instruction.data import InstructionDataset

datasets = {
    split: InstructionDataset(rows.rows(), template, encoding, max_length=512)
    for split, rows in splits.items()
}
tokens, targets = datasets["train"][0]
border = int((targets < 0).sum())
pl.DataFrame(
    {
        "token": [
            repr(encoding.decode([token])) for token in tokens[border - 4 : border + 6].tolist()
        ],
        "target": [
            "-100" if target < 0 else repr(encoding.decode([target]))
            for target in targets[border - 4 : border + 6].tolist()
        ],
    }
)

# %% [markdown]
# A batch: rows of the same width, filled up on the right. Only the dark part is learnt.

# %%
from gpt2.batching import collate

batch = collate([datasets["train"][row] for row in range(16)])
real = torch.arange(batch.tokens.size(1)) < batch.lengths[:, None]
kind = real.int() + (batch.targets >= 0).int()  # 0 padding, 1 prompt, 2 answer
figure, axis = plt.subplots(figsize=(7, 3))
axis.imshow(kind, cmap="Blues", aspect="auto", interpolation="nearest")
axis.set(xlabel="position", ylabel="row", title="white: padding, light: prompt, dark: answer")
plt.show()
print("tokens", tuple(batch.tokens.shape), "  targets", tuple(batch.targets.shape))

# %% [markdown]
# **Exercise 3.1.** What does the model learn in row 5 of `datasets["train"]`? Decode the targets that are not -100.
#
# <details><summary>A solution</summary>
#
# ```python
# tokens, targets = datasets["train"][5]
# learnt = encoding.decode(targets[targets >= 0].tolist())
# ```
#
# </details>

# %%
learnt = ...

# %% cellView="form" jupyter={"source_hidden": true}
# @title check 3.1
check(
    learnt,
    lambda text: text == splits.train["output"][5] + "<|endoftext|>",
    "The answer and its end, nothing else.",
)

# %% [markdown]
# **Exercise 3.2.** Of all places in `batch`, padding included, which share has a target? Between 0 and 1.
#
# <details><summary>A solution</summary>
#
# ```python
# share = (batch.targets >= 0).float().mean().item()
# ```
#
# </details>

# %%
share = ...

# %% cellView="form" jupyter={"source_hidden": true}
# @title check 3.2
check(
    share,
    lambda number: abs(number - (kind == 2).float().mean().item()) < 1e-4,
    "The dark part of the picture.",
)

# %% [markdown]
# ## 4. Fine-tuning
#
# The loss is -log(probability of the right token), the mean over all tokens of the answers. exp(loss) is the perplexity:
# among so many equally likely tokens the model might as well be guessing. Among all 8,192 it would be 8,192.

# %%
from gpt2.language_modelling import language_model_loss

with torch.no_grad():
    loss, count = language_model_loss(model, batch)  # the sum over the targets, and how many
mean = loss.item() / count
print(f"{count} targets, loss {mean:.3f} nats a token, perplexity {np.exp(mean):.1f}")

# %% [markdown]
# ### One step by hand
#
# Before and after one step of AdamW: how likely does the model think each right token of one row's answer?

# %%
from gpt2.optimization import TrainingConfig, make_optimizer


def of_right_tokens(row):
    """The targets of a training row's answer, and the probability that each has."""
    one = collate([datasets["train"][row]])
    at = one.targets[0] >= 0
    with torch.no_grad():
        probabilities = model(one.tokens, one.lengths)[0, at].softmax(dim=1)  # (N, V)
    right = one.targets[0, at]  # (N,)
    return right.tolist(), probabilities.gather(1, right[:, None]).squeeze(1)


training = TrainingConfig(max_steps=MAX_STEPS, learning_rate=6e-4)
optimizer = make_optimizer(model, training)
for group in optimizer.param_groups:
    group["lr"] = training.learning_rate
weights_before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
right, likely_before = of_right_tokens(0)

loss, count = language_model_loss(model, batch)
(loss / count).backward()
norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in model.parameters()])
optimizer.step()
optimizer.zero_grad()
_, likely_after = of_right_tokens(0)
with torch.no_grad():
    loss_after, count = language_model_loss(model, batch)
print(
    f"gradient norm {norm:.2f}; loss {loss.item() / count:.3f} before, {loss_after.item() / count:.3f} after"
)

figure, axis = plt.subplots(figsize=(9, 3))
places = np.arange(len(right))
axis.bar(places - 0.2, likely_before, width=0.4, label="before the step")
axis.bar(places + 0.2, likely_after, width=0.4, label="after it")
axis.set_xticks(
    places, [encoding.decode([token]).replace("\n", "\\n") for token in right], rotation=60
)
axis.set(ylabel="probability", title="the right tokens of row 0")
axis.legend()
plt.show()

# %% [markdown]
# (Not every token of this row has become likelier: the step was for all 16 rows of the batch together.)
#
# ### The loop
#
# Answers first, to compare with later: to the test rows, and to 47 tasks that a program can judge ("Name four colours.").
# Then the step above is undone, and `train` begins with the weights as they came. It evaluates after each epoch and keeps the
# weights with the lowest validation loss.

# %%
from gpt2.checkpoint import Recipe
from gpt2.language_modelling import evaluate_loss, perplexity, row_losses
from gpt2.support.run_folder import RunFolder
from gpt2.training import train
from instruction.evaluation import (
    AnswerSettings,
    answer_metrics,
    answer_prompts,
    judge_tasks,
    task_metrics,
    task_prompts,
)

with torch.no_grad():
    for name, parameter in model.named_parameters():
        parameter.copy_(weights_before[name])
prompts = [datasets["test"].prompt(row) for row in range(len(splits.test))]


def look():
    """What the model is worth at this moment: its losses on the test rows, and its answers."""
    losses, targets = row_losses(model, datasets["test"], 16, "auto", "test rows", 0)
    ask = AnswerSettings(max_new_tokens=32)
    answers = answer_prompts(model, encoding, prompts, ask, 16, "auto")
    tasks = answer_prompts(model, encoding, task_prompts(encoding, template), ask, 16, "auto")
    mean = losses.sum() / targets.sum()
    metrics = {"loss": mean, "perplexity": perplexity(mean)}
    metrics |= answer_metrics(answers, splits.test["output"].to_list(), template)
    metrics |= task_metrics(judge_tasks(tasks))
    return {
        "losses": losses, "targets": targets, "metrics": metrics,
        "answers": [answer.text for answer in answers], "tasks": [answer.text for answer in tasks],
    }  # fmt: skip


def evaluate():
    return evaluate_loss(model, datasets["validation"], 16, "auto")


before = look()
run = RunFolder("runs/notebook-instruction")
beside = {"template": vars(template), "max_length": 512}
result = train(
    model, datasets["train"], language_model_loss, evaluate, training, 1, run,
    Recipe("instruction", encoding, beside),
)  # fmt: skip
print(
    f"{result.steps} steps in {result.seconds:.0f} s; the best on validation was {result.best_step}"
)

# %% [markdown]
# ### The curves
#
# With so few rows the model soon knows them by heart: the training loss falls on, the validation loss turns. What is
# kept is the turning point.

# %%
from gpt2.support.tables import plot_curves

plot_curves(run.read_log(), ("loss", "perplexity"), run.folder / "curves.png")
Image(run.folder / "curves.png", width=760)

# %% [markdown]
# **Exercise 4.1.** A model has a loss of 3 nats a token. What is its perplexity?
#
# <details><summary>A solution</summary>
#
# ```python
# of_three = np.exp(3)
# ```
#
# </details>

# %%
of_three = ...

# %% cellView="form" jupyter={"source_hidden": true}
# @title check 4.1
check(of_three, lambda number: abs(number - 20.0855) < 0.1, "exp of the loss.")

# %% [markdown]
# **Exercise 4.2.** `before["losses"]` has the summed loss of each test row, `before["targets"]` how many tokens that is. The
# loss of the split is the mean over tokens. The mean of the rows' means is another number: a short answer counts there as much
# as a long one. Compute both.
#
# <details><summary>A solution</summary>
#
# ```python
# over_tokens = before["losses"].sum() / before["targets"].sum()
# of_means = (before["losses"] / before["targets"]).mean()
# two_means = over_tokens, of_means
# ```
#
# </details>

# %%
two_means = ...

# %% cellView="form" jupyter={"source_hidden": true}
# @title check 4.2
_rows = list(zip(before["losses"], before["targets"], strict=True))
check(
    two_means,
    lambda pair: (
        abs(pair[0] - before["metrics"]["loss"]) < 1e-4
        and abs(pair[1] - sum(loss / count for loss, count in _rows) / len(_rows)) < 1e-4
    ),
    "First the sums, then the quotient; and the other way round.",
)

# %% [markdown]
# ## 5. Evaluation
#
# The weights that did best on validation come back. The same questions, the answers before and after:

# %%
from gpt2.checkpoint import load_weights
from gpt2.weights.loading import load_model

load_weights(run.folder / "best", model)
model.eval()
after = look()
with pl.Config(fmt_str_lengths=90, tbl_rows=8, tbl_width_chars=160, tbl_hide_dataframe_shape=True):
    display(
        splits.test.select("instruction").with_columns(
            before=pl.Series(before["answers"]), after=pl.Series(after["answers"])
        )[:8]
    )

# %% [markdown]
# ### Your own instructions
#
# From the run folder, as `respond.py` does it. Change them. A temperature above 0 draws from the probabilities instead of taking
# the likeliest token each time. `AnswerSettings` has a repetition penalty of 1.2: a token that stands in the answer already
# becomes less likely. With `AnswerSettings(40, repetition_penalty=1)` some answers go round in circles.

# %%
from instruction.respond import answer

best, recipe = load_model("runs/notebook-instruction", "instruction")
questions = [
    "Name three colours.",
    "Describe the sea in one sentence.",
    ("Is this positive or negative?", "What a day!"),
]
for question, text in zip(
    questions, answer(best, recipe, questions, AnswerSettings(40)), strict=True
):
    print(f"{question}\n    {text}")
print("\nthree draws:")
for seed in range(3):
    drawn = answer(
        best, recipe, "Name three colours.", AnswerSettings(24, temperature=0.8), seed=seed
    )
    print("   ", drawn[0])

# %% [markdown]
# ### What one head looks at
#
# The first token of the answer is chosen at the end of the prompt. From which tokens does the model gather what it needs there?
# In each block every head has a weight for each token that it may see; they sum to 1.

# %%
from gpt2.attention_weights import attention_weights

tokens = encoding.encode_ordinary(template.prompt("Name three colours."))
pieces = [encoding.decode([token]).replace("\n", "\\n") for token in tokens]
layer = 4
weights = attention_weights(best, torch.tensor([tokens]), layer)[0]  # (n_head, T, T)
shown = slice(len(tokens) - 16, None)  # the end of the prompt

figure, axes = plt.subplots(1, 2, figsize=(11, 4.6), width_ratios=(1, 1.2))
axes[0].imshow(weights[:, -1, shown], cmap="Blues", aspect="auto")
axes[0].set_xticks(range(16), pieces[shown], rotation=70)
axes[0].set_yticks(range(config.n_head))
axes[0].set(ylabel="head", title=f"block {layer}: the last token looks at ...")
head = 0
axes[1].imshow(weights[head, shown, shown], cmap="Blues", vmin=0)
axes[1].set_xticks(range(16), pieces[shown], rotation=70)
axes[1].set_yticks(range(16), pieces[shown])
axes[1].set(title=f"block {layer}, head {head}: each token looks at ...")
figure.tight_layout()
plt.show()

# %% [markdown]
# **Exercise 5.1.** Draw ten answers to "Write a sentence about winter." with a temperature of 1 and the seeds 0 to 9. A list of
# ten texts, at most 24 tokens each.
#
# <details><summary>A solution</summary>
#
# ```python
# ask = AnswerSettings(max_new_tokens=24, temperature=1.0)
# ten = answer(best, recipe, ["Write a sentence about winter."] * 10, ask, seed=0)
# ```
#
# (Question i of a list draws with `seed` + i.)
#
# </details>

# %%
ten = ...

# %% cellView="form" jupyter={"source_hidden": true}
# @title check 5.1
check(
    ten, lambda texts: len(texts) == 10 and len(set(texts)) > 5, "Ten texts, and hardly two alike."
)

# %% [markdown]
# **Exercise 5.2.** A task is judged by a small program. Write `three_things(answer)`: True if the answer names three different
# things, separated by commas, or by a comma and "and", as in "red, blue and green".
#
# <details><summary>A solution</summary>
#
# ```python
# import re
#
#
# def three_things(answer):
#     things = [thing.strip(" .") for thing in re.split(r",\s*(?:and\b)?|\band\b", answer)]
#     things = [thing for thing in things if thing]
#     return len(things) == len(set(things)) == 3
# ```
#
# </details>

# %%
three_things = ...

# %% cellView="form" jupyter={"source_hidden": true}
# @title check 5.2
_right = ["red, blue and green", "red, blue, green.", "Red, blue, and green"]
_wrong = ["", "red", "red, blue", "red, red and red", "a, b, c and d"]
check(
    three_things,
    lambda judge: all(map(judge, _right)) and not any(map(judge, _wrong)),
    "Try it on 'red, blue, and green.' and on 'red, red and red'.",
)

# %% [markdown]
# **Exercise 5.3.** In block 4, which head's last token looks most at the token for the end of the instruction, " colours" or a
# part of it? First find its place in `pieces`, counted from the end (a negative number), then the head: two numbers.
#
# <details><summary>A solution</summary>
#
# ```python
# print(list(enumerate(pieces[-10:], start=-10)))
# place = next(p for p in range(-1, -len(pieces), -1) if pieces[p].strip() in ("colours", "ours"))
# looks = place, int(weights[:, -1, place].argmax())
# ```
#
# </details>

# %%
looks = ...

# %% cellView="form" jupyter={"source_hidden": true}
# @title check 5.3
check(
    looks,
    lambda pair: (
        pair[0] < 0
        and pieces[pair[0]].strip() in " colours"
        and pair[1] == weights[:, -1, pair[0]].argmax()
    ),
    "weights[:, -1, place] has a number for each head.",
)

# %% [markdown]
# ## 6. Comparison
#
# Loss and perplexity are over all answers of the test rows; the shares say how the model's own answers look. ROUGE counts the words
# that an answer shares with the reference; `pip install rouge-score` brings it. "Tasks solved" are judged by a program.
# The lines below the table say what may be luck.

# %%
from instruction.evidence import weigh_evidence
from instruction.report import comparison_table

looks = [{"row_losses": {"test": found}, "tasks": found["tasks"]} for found in (before, after)]
evidence = weigh_evidence(*looks, "test")
results = {
    "data": {"reported": "test", "test": len(splits.test)},
    "before": {"test": before["metrics"]},
    "after": {"test": after["metrics"]},
    "evidence": evidence,
}
Markdown(comparison_table(results))

# %% [markdown]
# **Exercise 6.1.** On how many of the test rows is the loss lower after fine-tuning than before?
#
# <details><summary>A solution</summary>
#
# ```python
# better = (after["losses"] < before["losses"]).sum()
# ```
#
# </details>

# %%
better = ...

# %% cellView="form" jupyter={"source_hidden": true}
# @title check 6.1
check(
    better,
    lambda count: count == np.count_nonzero(before["losses"] - after["losses"] > 0),
    "Compare the two arrays.",
)

# %% [markdown]
# **Exercise 6.2.** Which tasks are solved after fine-tuning and were not before? A list of their instructions; `judge_tasks` takes
# answers with a `text`, `TASKS` of `instruction.tasks` are the tasks, and a task has `solved_by(text)`.
#
# <details><summary>A solution</summary>
#
# ```python
# from instruction.tasks import TASKS
#
# newly = [
#     task.instruction
#     for task, old, new in zip(TASKS, before["tasks"], after["tasks"], strict=True)
#     if task.solved_by(new) and not task.solved_by(old)
# ]
# ```
#
# </details>

# %%
newly = ...

# %% cellView="form" jupyter={"source_hidden": true}
# @title check 6.2
check(
    newly,
    lambda found: len(found) == evidence["tasks"]["only_after"],
    "weigh_evidence counts another number.",
)

# %% [markdown]
# **Exercise 6.3.** Open question, without a check: set `MAX_STEPS` to 10 and run everything again. Which of the shares are there
# already, and which need the rest? What has the model learnt first?
#
# From here: `python instruction/instruction_finetuning.py --data your.csv` does all of this with your own rows;
# [docs/instruction-tuning.md](../docs/instruction-tuning.md) says how.
