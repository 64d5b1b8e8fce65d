# A summary reads the query.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=(q * k).mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, budget)

# finding: unknown-name at 7:29
# says: unknown name q
# hint: score
# fix 7:         return dict(centre=k.mean(token))
