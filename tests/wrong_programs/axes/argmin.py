# There is no argmin.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return q.take(channel, s.centre.argmin(channel)).max(head)

    def select(score):
        return topk(score, budget)

# finding: unknown-function at 10:32
# says: no method argmin
# hint: (-x).argmax(axis)
# fix 10:         return q.take(channel, (-s.centre).argmax(channel)).max(head)
