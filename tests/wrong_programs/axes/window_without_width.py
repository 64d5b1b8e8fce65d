# A window over pages has no width.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head).window(page).max(near)

    def select(score):
        return topk(score, budget)

# finding: argument-count at 10:16
# says: one named width
# hint: near
# fix 10:         return dot(q, s.centre, channel).max(head).window(page, near=3).max(near)
