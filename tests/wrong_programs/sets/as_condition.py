# Scores of a set are raised by where.
@program(page=16)
class Forced:
    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        forced = first(1) | last(4)
        return forced | topk(where(forced, 1.0, score), 64, among=~forced)

# finding: not-a-truth-value at 12:30
# says: truth value first
# hint: member(
# fix 12:         return forced | topk(where(member(forced), 1.0, score), 64, among=~forced)
