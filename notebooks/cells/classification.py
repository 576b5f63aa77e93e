# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Six chapters: fine-tune GPT-2 to classify texts
#
# A model that has learnt to continue texts learns to tell praise from complaint, on 720 short film reviews that lie in
# the repository. You look at each thing before it is used: a row, its tokens, a batch, the numbers that come out of the
# model, one training step. Everything that is called is the project's own code, the same that
# `python classification/train_gpt.py` calls; after a name and a question mark, as in `load_splits?`, Jupyter shows what
# it does.
#
# It takes about a minute on a laptop, and nothing is downloaded. Each chapter ends with exercises. Put your
# answer in the place of `...`, run the cell, then the one below it, which says whether the answer is right. Under each
# exercise a solution is folded away.
#
# Install first, in a terminal, in the repository: `pip install -e '.[notebook]'`, then `jupyter lab notebooks`.
# On Colab (`https://colab.research.google.com/github/OWNER/REPOSITORY/blob/main/notebooks/classification.ipynb`, with
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
from IPython.display import Image, Markdown

# Training steps in chapter 4. Fewer are quicker and teach less: MAX_STEPS=20 jupyter lab notebooks
MAX_STEPS = int(os.environ.get("MAX_STEPS", 180))


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
# `load_splits` reads the reviews, mends their texts, and gives three tables: one to learn from, one to choose by, and
# one that is looked at only at the end. No text stands in two of them.

# %%
from classification.data import load_splits, print_splits
from classification.sources import DataSettings

splits = load_splits(DataSettings(), seed=1)
print_splits(splits)

# %% [markdown]
# A row is a text and the number of its class: 0 is the first of the `labels`.

# %%
print(splits.labels)
for text, label in splits.train[:4].rows():
    print(f"\n{label} ({splits.labels[label]}): {text}")

# %% [markdown]
# How long are they? If one class were longer than the other, length alone would tell them apart, and a model might
# learn that instead of reading.

# %%
words = splits.train.with_columns(words=pl.col("text").str.split(" ").list.len())
figure, axis = plt.subplots(figsize=(7, 2.8))
for number, label in enumerate(splits.labels):
    lengths = words.filter(pl.col("label") == number)["words"]
    axis.hist(lengths, bins=range(0, 60, 3), alpha=0.6, label=f"{label}, mean {lengths.mean():.1f}")
axis.set(xlabel="words in a review", ylabel="reviews", title="480 training reviews")
axis.legend()
plt.show()

# %% [markdown]
# **Exercise 1.1.** How many of the training reviews have the letters `boring` in them, in any case, and how many of
# these are negative? Two numbers.
#
# <details><summary>A solution</summary>
#
# ```python
# found = splits.train.filter(pl.col("text").str.to_lowercase().str.contains("boring"))
# boring = len(found), (found["label"] == 0).sum()
# ```
#
# </details>

# %%
boring = ...

# %% cellView="form" jupyter={"source_hidden": true}
# @title check 1.1
_texts = [text.lower() for text in splits.train["text"]]
_labels = [
    label for text, label in zip(_texts, splits.train["label"], strict=True) if "boring" in text
]
check(boring, lambda pair: tuple(pair) == (len(_labels), _labels.count(0)), "Mind capital letters.")

# %% [markdown]
# **Exercise 1.2.** Before any model: write a rule. `guess(text)` returns 0 or 1, and should be right for more than 60 %
# of the validation reviews. Look at some training reviews for words that give it away.
#
# <details><summary>A solution</summary>
#
# ```python
# bad = ("bad", "boring", "dull", "worst", "awful", "not", "never", "no ", "waste", "poor", "weak")
#
#
# def guess(text):
#     return 0 if any(word in text.lower() for word in bad) else 1
# ```
#
# </details>

# %%
guess = ...

# %% cellView="form" jupyter={"source_hidden": true}
# @title check 1.2
_rows = splits.validation.rows()
check(
    guess,
    lambda rule: sum(rule(text) == label for text, label in _rows) / len(_rows) > 0.6,
    "It is right for 60 % or fewer.",
)

# %% [markdown]
# ## 2. Model
#
# `mini` is a GPT-2 of seven million weights that lies in the repository: pre-trained on other film reviews and on
# instructions. `choose_config` gives its shape and its tokenizer. `build_model` puts its weights into the trunk, and a
# new head on top, which knows nothing yet: two numbers for each text, one for each class.

# %%
from gpt2.heads import ClassificationHead
from gpt2.weights.building import ModelSettings, build_model, choose_config, count_parameters

config, encoding = choose_config(ModelSettings())
model, origin = build_model(
    ModelSettings(), config, lambda c: ClassificationHead(c, num_classes=2), "all", seed=1
)
print(config)
print(f"{origin}: {count_parameters(model)[0]:,} parameters")

# %% [markdown]
# Where are they? `wte` says what each of 8,192 tokens is, `wpe` what each of 512 positions is, the blocks in `h` do the
# work, and the head is tiny.

# %%
counts = {}
for name, parameter in model.named_parameters():
    part = name.split(".")[0] if not name.startswith("h.") else f"h.{name.split('.')[1]}"
    counts[part] = counts.get(part, 0) + parameter.numel()
figure, axis = plt.subplots(figsize=(7, 3.2))
bars = axis.barh(list(counts), list(counts.values()))
axis.bar_label(bars, [f" {count:,}" for count in counts.values()])
axis.set(xlabel="parameters", xlim=(0, 1.2 * max(counts.values())))
axis.invert_yaxis()
plt.show()
print(model.h[0])

# %% [markdown]
# **Exercise 2.1.** A block of width C has a matrix from C to 3C, one from C to C, one from C to 4C and one from 4C to C,
# a bias for each output, and two norms with a weight and a bias each. How many parameters has a block of `mini`
# (C = 256)? Compute it, then compare with the picture.
#
# <details><summary>A solution</summary>
#
# ```python
# C = 256
# in_a_block = (C * 3 * C + 3 * C) + (C * C + C) + (C * 4 * C + 4 * C) + (4 * C * C + C) + 2 * 2 * C
# ```
#
# </details>

# %%
in_a_block = ...

# %% cellView="form" jupyter={"source_hidden": true}
# @title check 2.1
check(
    in_a_block, lambda count: count == counts["h.0"], "Four matrices with their biases, two norms."
)

# %% [markdown]
# **Exercise 2.2.** Build a smaller GPT-2 of your own, from random weights, for three classes: 2 blocks, 4 heads, width
# 64, room for 128 tokens, a vocabulary of 8,192. (`from gpt2.model import GPT2, GPT2Config`; a head needs the
# same config.)
#
# <details><summary>A solution</summary>
#
# ```python
# from gpt2.model import GPT2, GPT2Config
#
# shape = GPT2Config(n_layer=2, n_head=4, n_embd=64, n_positions=128, vocab_size=8192)
# small = GPT2(shape, ClassificationHead(shape, num_classes=3))
# ```
#
# </details>

# %%
small = ...

# %% cellView="form" jupyter={"source_hidden": true}
# @title check 2.2
check(
    small,
    lambda own: count_parameters(own)[0] == 632_768 and own.head.score.out_features == 3,
    "It should have 632,768 parameters; print count_parameters(small).",
)

# %% [markdown]
# ## 3. Tokens
#
# A model reads numbers. The tokenizer cuts a text into pieces that it knows, common words whole and rare ones in parts;
# each piece has a number. A space belongs to the word after it.

# %%
sentence = "An unwatchable film, saved by its superb soundtrack."
tokens = encoding.encode_ordinary(sentence)
for token in tokens:
    print(f"{token:5}  {encoding.decode([token])!r}")

# %% [markdown]
# `IMDbDataset` does this for a whole split. A row is its token ids and its class, as tensors.

# %%
from classification.data import IMDbDataset

datasets = {
    split: IMDbDataset(rows["text"], rows["label"], encoding, max_length=512)
    for split, rows in splits.items()
}
datasets["train"][0]

# %% [markdown]
# A batch is a rectangle, but texts differ in length: `collate` fills shorter rows up on the right. Which tokens are real
# is known from `lengths` alone.

# %%
from gpt2.batching import collate

batch = collate([datasets["train"][row] for row in range(16)])
print("tokens", tuple(batch.tokens.shape), " lengths", batch.lengths.tolist())
print("targets", batch.targets.tolist())
real = torch.arange(batch.tokens.size(1)) < batch.lengths[:, None]
figure, axis = plt.subplots(figsize=(7, 2.8))
axis.imshow(real, cmap="Blues", aspect="auto", interpolation="nearest", vmax=1.4)
axis.set_yticks([0, 5, 10, 15])
axis.set(
    xlabel="position", ylabel="row", title=f"{1 - real.float().mean():.0%} of this batch is padding"
)
plt.show()

# %% [markdown]
# Padding costs time and says nothing. So rows of similar length share a batch; the batches then come in random order.

# %%
from gpt2.batching import shuffled_batches

batches = shuffled_batches(datasets["train"].lengths, batch_size=16, seed=1, epoch=0)
print(len(batches), "batches; the rows of the first:", batches[0])
alike = collate([datasets["train"][row] for row in batches[0]])
print("their lengths:", alike.lengths.tolist())

# %% [markdown]
# **Exercise 3.1.** Which training review has the most tokens? Its row number; `datasets["train"].lengths` is an array.
#
# <details><summary>A solution</summary>
#
# ```python
# longest = datasets["train"].lengths.argmax()
# ```
#
# </details>

# %%
longest = ...

# %% cellView="form" jupyter={"source_hidden": true}
# @title check 3.1
check(
    longest,
    lambda row: datasets["train"].lengths[row] == max(datasets["train"].lengths),
    "Another one is longer.",
)

# %% [markdown]
# **Exercise 3.2.** Write `padding(batch)`: the share of a batch that is padding, between 0 and 1. How much is it in
# `alike`?
#
# <details><summary>A solution</summary>
#
# ```python
# def padding(batch):
#     return 1 - batch.lengths.sum().item() / batch.tokens.numel()
# ```
#
# </details>

# %%
padding = ...

# %% cellView="form" jupyter={"source_hidden": true}
# @title check 3.2
check(
    padding,
    lambda share: (
        abs(share(batch) - (1 - real.float().mean().item())) < 1e-5 and share(alike) < share(batch)
    ),
    "For `batch` it is the share in the title of the picture.",
)

# %% [markdown]
# **Exercise 3.3.** What stands in the padding must not matter. Give `model` the first row of `batch` twice: cut to its
# real tokens, and with 20 more zeros behind it. Both times with the same `lengths`, under `torch.no_grad()`, after
# `model.eval()`. The answer: the largest difference between the logits.
#
# <details><summary>A solution</summary>
#
# ```python
# model.eval()
# length = batch.lengths[:1]
# row = batch.tokens[:1, : length.item()]
# with torch.no_grad():
#     longer = torch.nn.functional.pad(row, (0, 20))
#     difference = (model(row, length) - model(longer, length)).abs().max().item()
# ```
#
# </details>

# %%
difference = ...

# %% cellView="form" jupyter={"source_hidden": true}
# @title check 3.3
check(difference, lambda number: 0 <= number < 1e-4, "It should be no more than rounding.")

# %% [markdown]
# ## 4. Fine-tuning
#
# First, what does the model say before it has learnt anything of reviews? For each row two logits; the softmax makes
# probabilities of them. The head is random and small, so all are near one half, and the loss, the mean of
# -log(probability of the right class), is near log 2 = 0.693.

# %%
from classification.evaluation import classification_loss

model.eval()
with torch.no_grad():
    logits = model(batch.tokens, batch.lengths)  # (16, 2)
    loss, count = classification_loss(model, batch)  # the sum over the rows, and how many
print(torch.cat([logits, logits.softmax(dim=1)], dim=1)[:4])
print(f"loss {loss.item() / count:.4f}, log 2 is {np.log(2):.4f}")

# %% [markdown]
# ### One step by hand
#
# Forward: the loss. Backward: the gradient, which says for each weight how the loss changes when the weight grows. The
# norm is its length over all weights. AdamW then moves each weight against its gradient, by about the learning rate.

# %%
from gpt2.optimization import TrainingConfig, make_optimizer

training = TrainingConfig(max_steps=MAX_STEPS, learning_rate=6e-4)
optimizer = make_optimizer(model, training)
for group in optimizer.param_groups:
    group["lr"] = training.learning_rate
weights_before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

model.train()
loss, count = classification_loss(model, batch)
(loss / count).backward()
norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in model.parameters()])
print(f"loss before the step {loss.item() / count:.4f}, gradient norm {norm:.2f}")
gradients = {name: parameter.grad.norm().item() for name, parameter in model.named_parameters()}

optimizer.step()
optimizer.zero_grad()
loss, count = classification_loss(model, batch)
print(f"loss after it, on the same rows {loss.item() / count:.4f}")

# %% [markdown]
# What has changed? The gradient is largest in the head, which is new. But AdamW divides each gradient by its own usual
# size: in this first step every weight moves by nearly the learning rate, whatever the size of its gradient.

# %%
names = [f"h.{layer}.mlp.c_fc.weight" for layer in range(config.n_layer)]
names = ["wte.weight", *names, "head.score.weight"]
moved = {
    name: (parameter.detach() - weights_before[name]).abs().mean().item() / training.learning_rate
    for name, parameter in model.named_parameters()
}
figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True)
axes[0].barh(names, [gradients[name] for name in names])
axes[0].set(title="norm of the gradient", xscale="log")
axes[1].barh(names, [moved[name] for name in names])
axes[1].set(title="mean step of a weight, in learning rates", xlim=(0, 1.1))
axes[0].invert_yaxis()
figure.tight_layout()
plt.show()

# %% [markdown]
# (`wte` moves less on average because most of the 8,192 tokens are not in these 16 reviews, and have no gradient.)
#
# ### The loop
#
# `train` does this again and again: with a learning rate that rises and then falls, a clipped gradient, an evaluation on
# the validation split after each epoch, and a checkpoint of the weights that did best there. The step above is undone
# first, so that the training begins with the weights as they came.

# %%
from classification.evaluation import classification_metrics, predict_log_probabilities
from gpt2.checkpoint import Recipe
from gpt2.support.run_folder import RunFolder
from gpt2.training import train

with torch.no_grad():
    for name, parameter in model.named_parameters():
        parameter.copy_(weights_before[name])
targets = {split: rows["label"].to_numpy() for split, rows in splits.items()}


def log_probabilities(split):
    """What the model says of each row of a split: (rows, 2)."""
    return predict_log_probabilities(model, datasets[split], batch_size=16, precision="auto")


def evaluate():
    return classification_metrics(log_probabilities("validation"), targets["validation"])


model.eval()
before = log_probabilities("test")
run = RunFolder("runs/notebook-classification")
recipe = Recipe("classification", encoding, {"labels": splits.labels, "max_length": 512})
result = train(model, datasets["train"], classification_loss, evaluate, training, 1, run, recipe)
print(
    f"{result.steps} steps in {result.seconds:.0f} s; the best on validation was {result.best_step}"
)

# %% [markdown]
# ### The curves
#
# Where the training loss falls on and the validation loss rises, the model learns its 480 reviews by heart. That is why
# the best weights are kept, and not the last.

# %%
from gpt2.support.tables import plot_curves

plot_curves(run.read_log(), ("loss", "accuracy"), run.folder / "curves.png")
Image(run.folder / "curves.png", width=760)

# %% [markdown]
# **Exercise 4.1.** The rate of a step is a function of its number: `learning_rate(step, steps, config)` in
# `gpt2.optimization`. In a run of 180 steps with `training`, which step has the highest rate, the first being 0?
#
# <details><summary>A solution</summary>
#
# ```python
# from gpt2.optimization import learning_rate
#
# rates = [learning_rate(step, 180, training) for step in range(180)]
# peak = int(np.argmax(rates))
# ```
#
# </details>

# %%
peak = ...

# %% cellView="form" jupyter={"source_hidden": true}
# @title check 4.1
check(peak, lambda step: step in (17, 18), "The rate rises over the first tenth of the steps.")

# %% [markdown]
# **Exercise 4.2.** Memory may hold fewer rows than a step needs. Then one adds up the gradients of *summed* losses. Show
# that 8 rows at once and 5 + 3 rows give the same gradient of `model.head.score.weight`, and that the mean of the
# gradients of the two *means* does not. The answer: the two largest differences, of the sums and of the means.
#
# <details><summary>A solution</summary>
#
# ```python
# weight = model.head.score.weight
#
#
# def gradient(rows, divide):
#     loss, count = classification_loss(model, collate([datasets["train"][row] for row in rows]))
#     return torch.autograd.grad(loss / count if divide else loss, weight)[0]
#
#
# whole, five, three = range(8), range(5), range(5, 8)
# sums = gradient(whole, False) - (gradient(five, False) + gradient(three, False))
# means = gradient(whole, True) - (gradient(five, True) + gradient(three, True)) / 2
# differences = sums.abs().max().item(), means.abs().max().item()
# ```
#
# </details>

# %%
differences = ...

# %% cellView="form" jupyter={"source_hidden": true}
# @title check 4.2
check(
    differences,
    lambda pair: pair[0] < 1e-3 < 100 * pair[1] and pair[0] < pair[1],
    "The first should be rounding only, the second clearly more.",
)

# %% [markdown]
# ## 5. Evaluation
#
# The weights that did best on validation come back, and the test split is looked at for the first time.

# %%
from classification.evaluation import confident_mistakes, confusion
from gpt2.checkpoint import load_weights

load_weights(run.folder / "best", model)
model.eval()
after = {split: log_probabilities(split) for split in ("validation", "test")}
print(
    {
        name: round(value, 4)
        for name, value in classification_metrics(after["test"], targets["test"]).items()
    }
)
pl.DataFrame(
    confusion(after["test"], targets["test"]), schema=splits.labels, orient="row"
).insert_column(0, pl.Series("true class", splits.labels))

# %% [markdown]
# Shares hide what goes wrong. The most confident mistakes say more:

# %%
for mistake in confident_mistakes(
    after["test"], targets["test"], splits.test["text"].to_list(), splits.labels
):
    print(
        f"{mistake['predicted']} with {mistake['probability']:.1%}, is {mistake['label']}: {mistake['text']}\n"
    )

# %% [markdown]
# ### Your own sentences
#
# From the run folder, as `predict.py` does it. Change them.

# %%
from classification.predict import predict
from gpt2.weights.loading import load_model

best, recipe = load_model("runs/notebook-classification", "classification")
own = [
    "I would see it again tomorrow.",
    "Two hours of my life that I will not get back.",
    "It is a film.",
]
for text, probabilities in predict(best, recipe, own):
    print(f"{probabilities['positive']:6.1%} positive  {text}")

# %% [markdown]
# ### What one head looks at
#
# In each block every token gathers something from the tokens before it. A head has its own weights for that: for each
# token (a line of the picture) one number for each token that it may see, and they sum to 1. The model does not keep
# these numbers; `attention_weights` computes them once more.

# %%
from gpt2.attention_weights import attention_weights

sentence = "A dull start, but what a wonderful ending!"
tokens = encoding.encode_ordinary(sentence)
pieces = [encoding.decode([token]) for token in tokens]
layer, head = 2, 1
weights = attention_weights(best, torch.tensor([tokens]), layer)[0]  # (n_head, T, T)

figure, axis = plt.subplots(figsize=(5.4, 4.8))
picture = axis.imshow(weights[head], cmap="Blues", vmin=0, vmax=1)
axis.set_xticks(range(len(pieces)), pieces, rotation=60)
axis.set_yticks(range(len(pieces)), pieces)
axis.set(title=f"block {layer}, head {head}", xlabel="is looked at", ylabel="looks")
figure.colorbar(picture, shrink=0.8, label="weight")
plt.show()

# %% [markdown]
# Try other blocks (0 to 5) and heads (0 to 3). Many heads look mostly at the first token: that is where a head looks
# that has nothing to say. Such a picture shows where information comes from, not why the model decides as it does.
#
# **Exercise 5.1.** Find a sentence that the model gets wrong: `(text, label)`, where `label` is what a person would say,
# "positive" or "negative". Irony and "not" are good places to look.
#
# <details><summary>A solution</summary>
#
# ```python
# tricky = [
#     ("A great film, if you need some sleep.", "negative"),
#     ("Not bad at all.", "positive"),
#     ("I have never been less bored.", "positive"),
#     ("It has everything but a story.", "negative"),
#     ("I cried, I trembled, I forgot to breathe.", "positive"),
#     ("They promised a masterpiece.", "negative"),
# ]
# fooled = next(
#     (text, label)
#     for (text, label), (_, found) in zip(tricky, predict(best, recipe, [t for t, _ in tricky]))
#     if found[label] < 0.5
# )
# ```
#
# </details>

# %%
fooled = ...

# %% cellView="form" jupyter={"source_hidden": true}
# @title check 5.1
check(
    fooled,
    lambda pair: next(predict(best, recipe, pair[0]))[1][pair[1]] < 0.5,
    "The model agrees with you on this one.",
)

# %% [markdown]
# **Exercise 5.2.** Some heads look at the token just before. Which one does so most in `sentence`: the block and head
# whose weight from each token to its left neighbour, `weights[head][i, i - 1]`, has the largest mean?
#
# <details><summary>A solution</summary>
#
# ```python
# means = {}
# for layer in range(config.n_layer):
#     found = attention_weights(best, torch.tensor([tokens]), layer)[0]
#     for head in range(config.n_head):
#         means[layer, head] = found[head].diagonal(-1).mean().item()
# previous = max(means, key=means.get)
# ```
#
# </details>

# %%
previous = ...

# %% cellView="form" jupyter={"source_hidden": true}
# @title check 5.2
_means = torch.stack(
    [
        attention_weights(best, torch.tensor([encoding.encode_ordinary(sentence)]), _layer)[0]
        .diagonal(-1, 1, 2)
        .mean(dim=1)
        for _layer in range(config.n_layer)
    ]
)  # (n_layer, n_head)
check(previous, lambda pair: _means[tuple(pair)] == _means.max(), "Another head has a larger mean.")

# %% [markdown]
# ## 6. Comparison
#
# A model is worth what it adds to something simple. So the same rows go to a bag of words: logistic regression on how
# often each word occurs.

# %%
from baselines.train_logreg import measure_baseline

baseline, bag = measure_baseline(splits.only("train", "validation", "test"), "count")
for label, heaviest in zip(splits.labels, baseline["heaviest_words"], strict=True):
    print(f"speaks for {label}: {', '.join(heaviest)}")

# %% [markdown]
# The table has all contenders on the same 120 test reviews, each accuracy with the interval in which, with 95 %
# confidence, the accuracy on all such reviews lies.

# %%
from classification.evidence import say_difference, weigh_evidence
from classification.predictions import gather_predictions, measure_contenders
from classification.report import metrics_table

found, weight = gather_predictions(
    splits, "test", bag, {"log_probabilities": before.tolist()}, after
)
measured = measure_contenders(found, "test")
shown = {
    "majority": "majority class",
    "baseline": "bag of words",
    "before": "GPT-2 mini before",
    "after": "GPT-2 mini after",
    "together": "both together",
}
lines = [(name, measured[key]["test"], None) for key, name in shown.items()]
Markdown(metrics_table(120, "test rows", lines, splits.labels))

# %% [markdown]
# Is a difference more than luck? Both saw the same reviews, so one compares row by row: how often is only the one right,
# and how often only the other?

# %%
evidence = weigh_evidence(found["test"])
for difference in evidence["differences"]:
    first, second = shown[difference["first"]], shown[difference["second"]]
    print(say_difference(difference, first, second, rows=120))

# %% [markdown]
# **Exercise 6.1.** How many test rows does it take until the interval of an accuracy of 90 % is narrower than 5 points?
# `wilson_interval(right, rows)` gives the lower and the upper bound. The smallest number of rows, in steps of 10.
#
# <details><summary>A solution</summary>
#
# ```python
# from gpt2.support.intervals import wilson_interval
#
# enough = 10
# while True:
#     low, high = wilson_interval(round(0.9 * enough), enough)
#     if high - low < 0.05:
#         break
#     enough += 10
# ```
#
# </details>

# %%
enough = ...

# %% cellView="form" jupyter={"source_hidden": true}
# @title check 6.1
from gpt2.support.intervals import wilson_interval as _interval


def _width(rows):
    low, high = _interval(round(0.9 * rows), rows)
    return high - low


check(
    enough,
    lambda rows: _width(rows) < 0.05 <= _width(rows - 10),
    "More than 120, fewer than 1,000.",
)

# %% [markdown]
# **Exercise 6.2.** The two contenders make different mistakes. How many test reviews does only the bag of words get
# right, and how many only GPT-2? `found["test"].right("baseline")` is an array of True and False.
#
# <details><summary>A solution</summary>
#
# ```python
# bag_right, gpt_right = found["test"].right("baseline"), found["test"].right("after")
# only = (bag_right & ~gpt_right).sum(), (gpt_right & ~bag_right).sum()
# ```
#
# </details>

# %%
only = ...

# %% cellView="form" jupyter={"source_hidden": true}
# @title check 6.2
_difference = next(d for d in evidence["differences"] if d["first"] == "baseline")
check(
    only,
    lambda pair: tuple(pair) == (_difference["only_first"], _difference["only_second"]),
    "Right by the one, and (&) not (~) by the other.",
)

# %% [markdown]
# **Exercise 6.3.** Open question, without a check: run everything again with another seed in `build_model` and in
# `train`. By how much does the accuracy move? What does that say of a difference of two points between two runs?
#
# From here: `python classification/train_gpt.py --data your.csv` does all of this with your own texts, and
# [docs/own-task.md](../docs/own-task.md) goes through one such task from nothing to a report.
