# The name of a tensor is empty.
@program(page=16)
class Learned:
    gate = param("", head, channel)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q * gate, s.centre, channel).max(head)

    def select(score):
        return topk(score, 64)

# finding: param-tensor at 4:18
# says: no name of a tensor
# hint: leave it out
# fix 4:     gate = param(head, channel)
