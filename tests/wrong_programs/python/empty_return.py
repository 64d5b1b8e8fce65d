# select returns nothing.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return

# finding: no-return at 13:9
# says: gives nothing back
# hint: return what
# fix 13:         return topk(score, budget)
