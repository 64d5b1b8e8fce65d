"""The 13 families of RULER (Hsieh et al., arXiv 2404.06654), generated from seeds for any tokenizer and length."""

from vortexlab.evaluator.ruler.families import FAMILIES, VERSION, Corpus, Family, make_samples

__all__ = ["FAMILIES", "VERSION", "Corpus", "Family", "make_samples"]
