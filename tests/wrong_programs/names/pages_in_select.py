# select reads what it is to make.
@program(page=16)
class Forced:
    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        forced = pages | first(1) | last(4)
        return forced | topk(score, 64, among=~forced)

# finding: unknown-name at 11:18
# says: unknown name pages
# hint: attend and remember
# fix 11:         forced = first(1) | last(4)
