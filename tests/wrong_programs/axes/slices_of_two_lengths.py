# Sixty-four channels of the query meet thirty-two of the key.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q.slice(channel, 0, 64), s.centre.slice(channel, 0, 32), channel).max(head)

    def select(score):
        return topk(score, budget)

# finding: axis-size at 10:16
# says: 64 and 32
# hint: reduce channel
# fix 10:         return dot(q.slice(channel, 0, 64), s.centre.slice(channel, 0, 64), channel).max(head)
