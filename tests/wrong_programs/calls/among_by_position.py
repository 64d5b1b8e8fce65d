# among= has no name.
@program(page=16)
class Forced:
    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        forced = first(1) | last(4)
        return forced | topk(score, 64, ~forced)

# finding: argument-count at 12:41
# says: too many
# hint: among=~forced
# fix 12:         return forced | topk(score, 64, among=~forced)
