# among= is a comparison of scores.
@program(page=16)
class Forced:
    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        forced = first(1) | last(4)
        return forced | topk(score, 64, among=score > 0.0)

# finding: not-a-set at 12:47
# says: among must be a set
# hint: above(score
# fix 12:         return forced | topk(score, 64, among=above(score, 0.0) - forced)
