"""Attacks on the evaluator, each with the verdict that it must get: what tests and `vortex attack` run."""
