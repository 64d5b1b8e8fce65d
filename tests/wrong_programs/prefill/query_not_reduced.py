# The queries of a block stay apart.
@program(page=16, block=64)
class Blocks:
    def summarize(k):
        return dict(centre=k.mean(token))

    def pool(q):
        return q

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, 64)

# finding: pool-shape at 8:9
# says: one query for the block
# hint: q.mean(query)
# fix 8:         return q.mean(query)
