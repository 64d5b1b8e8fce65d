# Pages are left out with minus infinity.
@program(page=16)
class Forced:
    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        x = dot(q, s.centre, channel).max(head)
        return where(index(page) < 1, float("-inf"), x)

    def select(score):
        forced = first(1) | last(4)
        return forced | topk(score, 64, among=~forced)

# finding: text-as-value at 9:45
# says: text is not a value
# hint: -1e30
# fix 9:         return where(index(page) < 1, -1e30, x)
