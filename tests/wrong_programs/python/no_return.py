# score assigns and does not return.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        relevance = dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, budget)

# finding: no-return at 9:5
# says: score returns nothing
# hint: return
# fix 10:         return dot(q, s.centre, channel).max(head)
