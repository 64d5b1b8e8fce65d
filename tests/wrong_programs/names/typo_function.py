# A function is misspelt.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topkk(score, budget)

# finding: unknown-function at 13:16
# says: topkk
# hint: did you mean topk?
# fix 13:         return topk(score, budget)
