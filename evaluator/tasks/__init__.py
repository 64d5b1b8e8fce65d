"""The synthetic long-context tasks: families, vocabulary and samples. Needs torch and NumPy alone."""

from vortexlab.evaluator.tasks.families import TASKS, TaskFamily
from vortexlab.evaluator.tasks.samples import SPLITS, Reference, Sample, Turn, make_samples
from vortexlab.evaluator.tasks.vocabulary import to_ids, to_text

__all__ = ["SPLITS", "TASKS", "Reference", "Sample", "TaskFamily", "Turn", "make_samples", "to_ids", "to_text"]
