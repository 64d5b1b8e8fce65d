# A summary looks at the neighbour pages.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token).window(page, near=3).max(near))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, budget)

# finding: axis-missing at 7:49
# says: no axis page
# hint: stands in score
# fix 7:         return dict(centre=k.mean(token))
# fix 10:         return dot(q, s.centre.window(page, near=3).max(near), channel).max(head)
