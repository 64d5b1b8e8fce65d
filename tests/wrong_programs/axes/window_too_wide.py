# A window reaches over a hundred pages.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head).window(page, near=101).max(near)

    def select(score):
        return topk(score, budget)

# finding: whole-number at 10:70
# says: out of range
# hint: a few neighbours
# fix 10:         return dot(q, s.centre, channel).max(head).window(page, near=5).max(near)
