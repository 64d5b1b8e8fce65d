# A summary reads its page's number.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token) * float(index(page)))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, budget)

# finding: index-axis at 7:56
# says: no length here
# hint: no axis page
# fix 7:         return dict(centre=k.mean(token))
