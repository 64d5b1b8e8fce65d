# An option of a learned constant is a number.
@program(page=16)
class Learned:
    gate = param(head, channel, per_layer=1)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q * gate, s.centre, channel).max(head)

    def select(score):
        return topk(score, 64)

# finding: param-option at 4:43
# says: True or False
# hint: per_layer=True
# fix 4:     gate = param(head, channel, per_layer=True)
