# A learned constant is declared in a method.
@program(page=16)
class Learned:
    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q * param(head, channel), s.centre, channel).max(head)

    def select(score):
        return topk(score, 64)

# finding: unknown-function at 8:24
# says: param
# hint: class body
# fix 4:     gate = param(head, channel)
# fix 4:
# fix 4:     def summarize(k):
# fix 8:         return dot(q * gate, s.centre, channel).max(head)
