# An option of a knob is misspelt.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, defualt=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, budget)

# finding: unknown-argument at 4:49
# says: no option defualt
# hint: did you mean default?
# fix 4:     budget = knob.int(1, 512, log=True, default=64)
