# Nothing makes the summary that the score reads.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, budget)

# finding: unknown-member at 7:23
# says: s has no centre
# hint: def summarize
# fix 5:
# fix 5:     def summarize(k):
# fix 5:         return dict(centre=k.mean(token))
# fix 5:
