"""The language: source text in, checked typed program out."""

from vortexlab.dsl.parser import check, load, parse

__all__ = ["check", "load", "parse"]
