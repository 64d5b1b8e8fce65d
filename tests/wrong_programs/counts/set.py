# A budget is a set.
@program(page=16)
class Forced:
    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        forced = first(1) | last(4)
        return forced | topk(score, last(4), among=~forced)

# finding: count-not-int at 12:37
# says: int scalar
# hint: write the number
# fix 12:         return forced | topk(score, 64, among=~forced)
