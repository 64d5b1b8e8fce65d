# A reduction is misspelt.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.maen(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, budget)

# finding: unknown-function at 7:28
# says: no method maen
# hint: did you mean mean?
# fix 7:         return dict(centre=k.mean(token))
