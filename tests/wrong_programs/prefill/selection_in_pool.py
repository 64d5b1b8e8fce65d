# Pooling selects pages.
@program(page=16, block=64)
class Blocks:
    def summarize(k):
        return dict(centre=k.mean(token))

    def pool(q):
        return q.mean(query) * first(1)

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, 64)

# finding: selector-in-pool at 8:32
# says: which pool cannot
# hint: select
# fix 8:         return q.mean(query)
