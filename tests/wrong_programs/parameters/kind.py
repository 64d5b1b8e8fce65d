# A learned constant has an unknown kind.
@program(page=16)
class Learned:
    gate = param(head, channel, kind="bf16")

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q * gate, s.centre, channel).max(head)

    def select(score):
        return topk(score, 64)

# finding: param-option at 4:38
# says: float or int
# hint: kind="float"
# fix 4:     gate = param(head, channel, kind="float")
