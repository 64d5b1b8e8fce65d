# A variable of score is read in select.
@program(page=16)
class Forced:
    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        forced = first(1) | last(4)
        return forced | topk(relevance, 64, among=~forced)

# finding: unknown-name at 12:30
# says: relevance
# hint: declare it in the class body
# fix 12:         return forced | topk(score, 64, among=~forced)
