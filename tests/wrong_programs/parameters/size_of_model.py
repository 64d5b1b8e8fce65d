# An axis of the model is given a size.
@program(page=16)
class Learned:
    gate = param(head, channel=128)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q * gate, s.centre, channel).max(head)

    def select(score):
        return topk(score, 64)

# finding: param-axes at 4:32
# says: no size of its own
# hint: param(channel, ...)
# fix 4:     gate = param(head, channel)
