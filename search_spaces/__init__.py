"""What a search may vary: published programs, shared knobs, the mutation grammar and model geometries."""

from vortexlab.search_spaces.library import load, seeds

__all__ = ["load", "seeds"]
