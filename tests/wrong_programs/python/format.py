# A text is formatted.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre='{0.__class__}'.format(k))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, budget)

# finding: not-callable at 7:28
# says: nothing to call
# hint: precision
# fix 7:         return dict(centre=k.mean(token))
