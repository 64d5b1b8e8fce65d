# A number that nothing declares.
@program(page=16)
class Centroid:
    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, limit)

# finding: unknown-name at 11:28
# says: limit
# hint: declare it in the class body
# fix 4:     limit = 64
# fix 4:
# fix 4:     def summarize(k):
