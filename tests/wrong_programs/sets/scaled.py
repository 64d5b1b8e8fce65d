# A set is scaled.
@program(page=16)
class Forced:
    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        forced = 2 * first(1) | last(4)
        return forced | topk(score, 64, among=~forced)

# finding: set-and-number at 11:18
# says: combined with sets only
# hint: |, &, - and ~
# fix 11:         forced = first(2) | last(4)
