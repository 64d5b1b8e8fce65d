# A budget has a page axis.
@program(page=16)
class Centroid:
    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, score)

# finding: count-not-int at 11:28
# says: int scalar
# hint: floor(x.sum(page))
# fix 11:         return topk(score, floor(score.sum(page)))
