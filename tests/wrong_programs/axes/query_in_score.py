# The score reduces over the queries of a block.
@program(page=16, block=64)
class Blocks:
    def summarize(k):
        return dict(centre=k.mean(token))

    def pool(q):
        return q.mean(query)

    def score(q, s):
        return dot(q, s.centre, channel).max(query).max(head)

    def select(score):
        return topk(score, 64)

# finding: axis-missing at 11:46
# says: no axis query
# hint: in pool
# fix 11:         return dot(q, s.centre, channel).max(head)
