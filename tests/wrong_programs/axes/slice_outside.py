# A slice reaches beyond the page.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.slice(token, 0, 32).mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, budget)

# finding: slice-range at 7:43
# says: not inside the axis
# hint: the first n
# fix 7:         return dict(centre=k.slice(token, 0, 8).mean(token))
