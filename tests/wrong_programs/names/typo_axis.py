# An axis is misspelt.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(tokne))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, budget)

# finding: unknown-name at 7:35
# says: tokne
# hint: did you mean token?
# fix 7:         return dict(centre=k.mean(token))
