# Nothing reads a summary (warning).
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token), spread=k.max(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, budget)

# finding: unused-summary at 7:50
# says: summary spread
# hint: remove spread=
# fix 7:         return dict(centre=k.mean(token))
