# A number is joined to a set.
@program(page=16)
class Forced:
    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        forced = first(1) | 4
        return forced | topk(score, 64, among=~forced)

# finding: set-and-number at 11:18
# says: combine sets
# hint: topk, first, last
# fix 11:         forced = first(1) | last(4)
