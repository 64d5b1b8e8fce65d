# Nothing reads a variable (warning).
@program(page=16)
class Forced:
    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        window = last(64)
        forced = first(1) | last(4)
        return forced | topk(score, 64, among=~forced)

# finding: unused-variable at 11:9
# says: nothing reads window
# hint: remove
# fix 11:
