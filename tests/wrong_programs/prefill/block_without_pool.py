# A block is named and not pooled.
@program(page=16, block=64)
class Blocks:
    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, 64)

# finding: block-without-pool at 2:25
# says: does not pool
# hint: q.mean(query)
# fix 7:     def pool(q):
# fix 7:         return q.mean(query)
# fix 7:
# fix 7:     def score(q, s):
