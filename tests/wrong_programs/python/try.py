# An error is to be caught.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        try:
            return topk(score, budget)
        except Exception:
            return everything()

# finding: not-in-language at 13:9
# says: try:
# hint: leave it out
# finding: no-return at 12:5
# fix 13:         return topk(score, budget)
# fix 14:
# fix 15:
# fix 16:
