# Part of a budget goes to pages that are read anyway (warning).
@program(page=16)
class Forced:
    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        forced = first(1) | last(4)
        return forced | topk(score, 64)

# finding: budget-on-forced at 12:25
# says: read anyway
# hint: among=~forced
# fix 12:         return forced | topk(score, 64, among=~forced)
