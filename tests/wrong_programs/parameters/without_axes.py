# A learned constant has no axes.
@program(page=16)
class Learned:
    gate = param()

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q * gate, s.centre, channel).max(head)

    def select(score):
        return topk(score, 64)

# finding: param-axes at 4:12
# says: no axes
# hint: name the axes
# fix 4:     gate = param(head, channel)
