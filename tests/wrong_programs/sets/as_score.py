# A set is chosen from as if it were a score.
@program(page=16)
class Forced:
    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        forced = first(1) | last(4)
        return forced | topk(~forced, 64)

# finding: set-and-number at 12:30
# says: chooses by a score
# hint: as among=
# fix 12:         return forced | topk(score, 64, among=~forced)
