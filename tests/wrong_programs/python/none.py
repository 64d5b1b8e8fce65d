# A missing set is None.
@program(page=16)
class Forced:
    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        forced = first(1) | last(4)
        return forced | topk(score, 64, among=None)

# finding: not-in-language at 12:47
# says: None
# hint: leave the argument out
# fix 12:         return forced | topk(score, 64, among=~forced)
