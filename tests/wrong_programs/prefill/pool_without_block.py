# Queries are pooled and no block is named.
@program(page=16)
class Blocks:
    def summarize(k):
        return dict(centre=k.mean(token))

    def pool(q):
        return q.mean(query)

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, 64)

# finding: pool-without-block at 7:5
# says: no blocks
# hint: block=64
# fix 2: @program(page=16, block=64)
