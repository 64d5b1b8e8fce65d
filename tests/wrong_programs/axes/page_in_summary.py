# A summary looks at all pages.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(page))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, budget)

# finding: axis-missing at 7:35
# says: no axis page
# hint: a summary sees one page
# fix 7:         return dict(centre=k.mean(token))
