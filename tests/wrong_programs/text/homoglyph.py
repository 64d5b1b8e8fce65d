# The a of page is a Cyrillic one.
@program(pаge=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, budget)

# finding: name-not-ascii at 2:11
# says: outside a-z
# hint: look alike
# fix 2: @program(page=16)
