# A learned constant has a page axis.
@program(page=16)
class Learned:
    gate = param(page, channel)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q * gate, s.centre, channel).max(head)

    def select(score):
        return topk(score, 64)

# finding: param-axes at 4:18
# says: no axis of the model
# hint: head, token, channel
# fix 4:     gate = param(head, channel)
