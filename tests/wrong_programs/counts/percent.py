# A mass is given in percent (warning).
@program(page=16)
class Centroid:
    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topp(score, 95)

# finding: whole-budget at 11:16
# says: every page
# hint: 0.95
# fix 11:         return topp(score, 0.95)
