# A square matrix names one axis twice.
@program(page=16)
class Learned:
    gate = param(channel, channel)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q * gate, s.centre, channel).max(head)

    def select(score):
        return topk(score, 64)

# finding: param-axes at 4:12
# says: twice
# hint: axis of your own with a size
# fix 4:     gate = param(channel, width=128)
# fix 10:         return dot(dot(q, gate, channel), dot(s.centre, gate, channel), width).max(head)
