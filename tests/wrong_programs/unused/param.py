# Nothing reads a learned constant (warning).
@program(page=16)
class Learned:
    gate = param(head, channel)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, 64)

# finding: unused-param at 4:5
# says: parameter gate
# hint: use gate
# fix 10:         return dot(q * gate, s.centre, channel).max(head)
