# Words are imported one by one.
from vortexlab.dsl import program, topk

@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, budget)

# finding: import at 2:1
# says: imports nothing else
# hint: from vortexlab.dsl import *
# fix 2: from vortexlab.dsl import *
