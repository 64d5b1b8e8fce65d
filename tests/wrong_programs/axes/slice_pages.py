# The first pages are cut off with slice.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head).slice(page, 1)

    def select(score):
        return topk(score, budget)

# finding: page-axis at 10:58
# says: slice does not work on page
# hint: where(index(page)
# fix 10:         x = dot(q, s.centre, channel).max(head)
# fix 10:         return where(index(page) < 1, 0.0, x)
