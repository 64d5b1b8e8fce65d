# A set is turned round with not.
@program(page=16)
class Forced:
    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        forced = first(1) | last(4)
        return forced | topk(score, 64, among=not forced)

# finding: not-a-truth-value at 12:47
# says: `not` takes a truth value
# hint: ~a
# fix 12:         return forced | topk(score, 64, among=~forced)
