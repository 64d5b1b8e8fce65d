# member is asked about a number.
@program(page=16)
class Forced:
    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        score = where(member(3), 1.0, score)
        forced = first(1) | last(4)
        return forced | topk(score, 64, among=~forced)

# finding: not-a-set at 11:30
# says: must be a set of pages
# hint: first(n)
# fix 11:         score = where(member(first(3)), 1.0, score)
