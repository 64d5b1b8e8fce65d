# The file declares an encoding.
# -*- coding: utf-8 -*-
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, budget)

# finding: coding-cookie at 2:1
# says: declares an encoding
# hint: remove
# fix 2:
