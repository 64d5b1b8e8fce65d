# Sets are joined with or.
@program(page=16)
class Forced:
    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        forced = first(1) or last(4)
        return forced | topk(score, 64, among=~forced)

# finding: not-a-truth-value at 11:18
# says: `or` takes truth values
# hint: | and &
# fix 11:         forced = first(1) | last(4)
