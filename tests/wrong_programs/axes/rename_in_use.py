# An axis is renamed to one that the value has.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.rename(channel, token).mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, budget)

# finding: axis-taken at 7:37
# says: token is taken
# hint: another name
# fix 7:         return dict(centre=k.rename(channel, other).mean(token))
# fix 10:         return dot(q.rename(channel, other), s.centre, other).max(head)
