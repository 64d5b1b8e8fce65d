"""The model card: what the model is, how it was made, and what was measured, from the record of its training run."""

from __future__ import annotations

from typing import Any

from vortexlab.evaluator.reference.decoder import DecoderConfig
from vortexlab.evaluator.reference.measure import Cell, table, wilson
from vortexlab.evaluator.tasks.families import TASKS, TRAINING_ONLY

_CARD = """\
---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
tags:
- long-context
- synthetic
- sparse-attention
---

# Vortex reference model

A decoder of {millions:.1f} million parameters in Qwen3 format that retrieves from contexts of up to {longest:,} tokens.
It exists so that the accuracy of a sparse attention program can be measured anywhere, with no download. It knows 1,024
pseudo-words and the synthetic tasks below, and nothing else.

| | |
|---|---|
| layers, width, feed-forward | {layers}, {width}, {feed_forward} |
| attention | {heads} query heads on {kv_heads} KV heads of {head_dim} channels, query and key norms |
| positions | RoPE, base {base:.0e} |
| vocabulary | 1,024 words, one token each; text is words joined by single blanks |
| weights | bfloat16, embeddings tied |

## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "evaluator/reference/model"
model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
```

Answers are generated greedily and have a known number of tokens; the model has no token that ends an answer. The tasks
come from `vortexlab.evaluator.tasks.make_samples`.

## Training

By `evaluator/reference/train.py` from a random start, with AdamW: {steps:,} steps, {tokens:,} tokens,
{train_seconds:,} s on one {device}, torch {torch}, Python {python}, seed {seed}.
All data are drawn from the task generators while training. The schedule is laid out in seconds, so the same command on
another device gives another model of the same kind, not the same bits.
{rehearsed}
## Accuracy with full attention

Exact match of the greedy answer, by context length in tokens:

{table}

Measured by the same run on the same device ({dtype}), seed {seed}, on the {split} split,
which is never trained on: {contexts} contexts per task and length, each read once, {answers} independent questions.
With 95 % confidence a cell of 1.000 is at least {few_low:.3f} if {fewest} answers stand behind it,
{many_low:.3f} if {most} do.

## Limits

* No figure of this model predicts a figure of a production model. Gaps between selection rules are this model's own.
* Contexts beyond {longest:,} tokens were neither trained nor measured. Positions end at {positions:,}; the difference
  is for questions and answers.
* Text other than the tasks' becomes `<unk>`.
"""

_REHEARSED = """
The mix also held `{name}` ({what}), an easier form of a task that is not evaluated.
The figures below were reached with it; the recipe has not been run without it.
"""


def model_card(config: DecoderConfig, parameters: int, measured: dict[str, Any]) -> str:
    """The README.md of a model folder; ``measured`` is the content of the run's ``accuracy.json``."""
    every = [Cell(**cell) for cell in measured["cells"]]
    cells = [cell for cell in every if cell.task in TASKS]
    counts = sorted({cell.answers for cell in cells})
    rehearsed = "".join(_REHEARSED.format(name=name, what=family.summary) for name, family in TRAINING_ONLY.items())
    return _CARD.format(
        millions=parameters / 1e6,
        longest=max(cell.length for cell in cells),
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        feed_forward=config.intermediate_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        base=config.rope_theta,
        positions=config.max_position_embeddings,
        rehearsed=rehearsed,
        table=table(cells),
        contexts=cells[0].contexts,
        answers=" or ".join(str(count) for count in counts),
        fewest=counts[0],
        most=counts[-1],
        few_low=wilson(counts[0], counts[0])[0],
        many_low=wilson(counts[-1], counts[-1])[0],
        **{key: value for key, value in measured.items() if key != "cells"},
    )
