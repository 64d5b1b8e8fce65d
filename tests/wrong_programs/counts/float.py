# A budget is written as a float.
@program(page=16)
class Centroid:
    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, 64.0)

# finding: count-not-int at 11:28
# says: int scalar
# hint: floor(64.0)
# fix 11:         return topk(score, 64)
