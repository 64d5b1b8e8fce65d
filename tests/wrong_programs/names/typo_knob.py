# A knob is misspelt.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, bugdet)

# finding: unknown-name at 13:28
# says: bugdet
# hint: did you mean budget?
# fix 13:         return topk(score, budget)
