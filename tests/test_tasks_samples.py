"""The tasks' samples: determined by their seeds, disjoint between splits, and answerable from their text."""

from __future__ import annotations

import hashlib
import itertools

import numpy as np
import pytest
from task_solver import is_key, is_noise, is_value, solve

from vortexlab.dsl.errors import VortexError
from vortexlab.evaluator.tasks import SPLITS, TASKS, make_samples, to_ids, to_text
from vortexlab.evaluator.tasks.draws import SeededDraws
from vortexlab.evaluator.tasks.families import DECOY_SHARE, TRAINING_FAMILIES, TRAINING_ONLY
from vortexlab.evaluator.tasks.keys import KeyRing
from vortexlab.evaluator.tasks.vocabulary import KEY, NOISE, VALUE, VOCABULARY_SIZE, words

EVERY = pytest.mark.parametrize("task", TASKS)


def test_families_are_those_of_the_benchmark() -> None:
    assert list(TASKS) == ["needle", "needles", "keys", "multivalue", "multiquery", "frequent", "chain", "late"]
    assert not set(TRAINING_ONLY) & set(TASKS)


@EVERY
def test_samples_are_determined_by_their_seed(task: str) -> None:
    samples = make_samples(task, 512, 3, seed=5, split="validation")
    assert samples == make_samples(task, 512, 3, seed=5, split="validation")
    assert make_samples(task, 512, 1, seed=5, split="validation") == samples[:1]
    assert [(s.task, s.length, s.index) for s in samples] == [(task, 512, i) for i in range(3)]


@EVERY
def test_samples_of_different_seeds_splits_and_indices_share_no_context(task: str) -> None:
    contexts = [
        tuple(sample.context)
        for seed, split in itertools.product((0, 1), SPLITS)
        for sample in make_samples(task, 512, 3, seed, split)
    ]
    assert len(set(contexts)) == len(contexts) == 18
    assert all(len(context) == 512 for context in contexts)


def test_samples_never_change() -> None:
    """Verdicts and the model's measured accuracy belong to these very samples."""
    digest = hashlib.sha256()
    for task in TASKS:
        for sample in make_samples(task, 512, 3, seed=1, split="sealed"):
            turns = [(turn.question, turn.answer) for turn in sample.turns]
            digest.update(repr((sample.context, turns)).encode())
    assert digest.hexdigest() == "e6c8cd8a6ac799b94613dd43bfa654f43f84c25330f3e0558836daaee621a1b7"


@pytest.mark.parametrize("split", SPLITS)
@EVERY
def test_solver_reproduces_every_answer(task: str, split: str) -> None:
    for length in (TASKS[task].shortest, 512, 1500):
        for sample in make_samples(task, length, 4, seed=3, split=split):
            assert len(sample.turns) == TASKS[task].turns
            for turn in sample.turns:
                assert to_text(turn.answer) == solve(sample.context, turn.question)
                assert len(turn.question) + len(turn.answer) == TASKS[task].turn_tokens


def test_solver_reproduces_answers_at_the_longest_claimed_length() -> None:
    for task in TASKS:
        (sample,) = make_samples(task, 16384, 1)
        for turn in sample.turns:
            assert to_text(turn.answer) == solve(sample.context, turn.question)


def test_solver_reproduces_the_answers_of_training_only_families() -> None:
    for family in TRAINING_ONLY.values():
        episodes = family.build(SeededDraws([np.random.SeedSequence(i) for i in range(4)]), 512, family.plan(512))
        for context, questions, answers in zip(*(t.tolist() for t in vars(episodes).values()), strict=True):
            for question, answer in zip(questions, answers, strict=True):
                assert to_text(answer) == solve(context, question)


def test_questions_of_one_sample_differ() -> None:
    for task, family in TASKS.items():
        for sample in make_samples(task, 512, 3):
            assert len({tuple(turn.question) for turn in sample.turns}) == family.turns


def test_a_needle_lies_anywhere() -> None:
    places = []
    for sample in make_samples("needle", 512, 64):
        key = sample.turns[0].question[1:]
        places += [i for i in range(511) if sample.context[i : i + 2] == key]
    assert len(places) == 64
    quarters = np.bincount(np.array(places) * 4 // 512, minlength=4)
    assert quarters.min() >= 6  # 16 expected; 6 or fewer in some quarter happens once in a thousand draws


def test_keys_are_distinct_and_near_misses_are_none_of_them() -> None:
    used = 30_000  # nearly half of all pairs, so that a candidate is often a key
    ring = KeyRing(SeededDraws([np.random.SeedSequence(1), np.random.SeedSequence(2)]))
    keys = ring.keys(used)
    near, found = ring.near_misses(keys, used)
    assert 0.9 < found.float().mean() < 1.0
    for row in range(2):
        taken = set(map(tuple, keys[row].tolist()))
        assert len(taken) == used
        assert not taken & set(map(tuple, near[row][found[row]].tolist()))
    shared = (near == keys).sum(dim=-1)
    assert (shared[found] == 1).all()


@pytest.mark.parametrize("task", ["needles", "multivalue", "multiquery", "chain"])
def test_noise_holds_keys_that_nearly_match(task: str) -> None:
    """So that half of a key is not enough to find its fact."""
    for sample in make_samples(task, 512, 3):
        text = to_text(sample.context).split()
        pairs = {(a, b) for a, b in itertools.pairwise(text) if is_key(a) and is_key(b)}
        asked = {tuple(to_text(turn.question).split()[1:3]) for turn in sample.turns}
        near = [pair for pair in pairs for key in asked if (pair[0] == key[0]) != (pair[1] == key[1])]
        assert near


def test_a_late_fact_lies_in_the_sparse_part_pages_before_it_is_asked() -> None:
    for sample in make_samples("late", 512, 8):
        for turn in sample.turns:
            text = to_text(turn.question).split()
            first = next(i for i, word in enumerate(text) if is_key(word))
            assert text[-2:] == text[first : first + 2]
            assert len(text) - (first + 4) >= 48
            assert all(map(is_noise, text[:first] + text[first + 4 : -3]))


def test_the_end_of_a_text_suggests_the_wrong_frequent_word() -> None:
    misled = 0
    for sample in make_samples("frequent", 2048, 20):
        tail = sample.context[-(2048 // DECOY_SHARE) :]
        misled += max(set(tail), key=tail.count) != sample.turns[0].answer[0]
    assert misled >= 18


def test_word_classes_tell_keys_values_and_noise_apart() -> None:
    table = words()
    assert len(set(table)) == len(table) == VOCABULARY_SIZE
    for i, word in enumerate(table):
        found = (is_key(word), is_value(word), is_noise(word))
        assert found == (KEY <= i < VALUE, VALUE <= i < NOISE, i >= NOISE)


def test_text_and_ids_convert_without_loss() -> None:
    every = list(range(VOCABULARY_SIZE))
    assert to_ids(to_text(every)) == every
    assert to_ids("no such") == [1, 1]


@EVERY
def test_too_short_a_context_is_refused(task: str) -> None:
    shortest = TASKS[task].shortest
    with pytest.raises(VortexError, match=f"needs a context of at least {shortest} tokens, found {shortest - 1}"):
        make_samples(task, shortest - 1, 1)


def test_wrong_arguments_are_refused_in_one_line() -> None:
    with pytest.raises(VortexError, match="unknown task 'numbered'; the tasks are needle, needles"):
        make_samples("numbered", 512, 1)
    with pytest.raises(VortexError, match="split 'test' is not one of search, validation, sealed"):
        make_samples("needle", 512, 1, split="test")
    with pytest.raises(VortexError, match="must not be negative"):
        make_samples("needle", 512, 1, seed=-1)


def test_plans_fit_at_every_length() -> None:
    for family in TRAINING_FAMILIES.values():
        for length in {family.shortest, 640, 1000, 4096, 16384} - set(range(family.shortest)):
            draws = SeededDraws([np.random.SeedSequence(length)])
            assert family.build(draws, length, family.plan(length)).context.shape == (1, length)
