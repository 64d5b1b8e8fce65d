# An axis of the program has no size.
@program(page=16)
class Learned:
    gate = param(rank, channel)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q * gate, s.centre, channel).max(head).max(rank)

    def select(score):
        return topk(score, 64)

# finding: param-axes at 4:18
# says: no axis of the model
# hint: rank=64
# fix 4:     gate = param(channel, rank=64)
