# select takes the query.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score, q):
        return topk(score, budget)

# finding: unknown-parameter at 12:23
# says: no parameter q
# hint: let score return
# fix 12:     def select(score):
