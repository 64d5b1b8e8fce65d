from vortexlab.dsl import *


@program(page=16)
class Smoothed:
    """Centroid scores averaged with those of the neighbouring pages, best head."""

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        near_scores = dot(q, s.centre, channel).window(page, near=3, fill=0.0)
        weight = where(near_scores.index(near) == 1, 0.5, 0.25)
        return dot(near_scores, weight, near).max(head)

    def select(score):
        return topk(score, 64)
