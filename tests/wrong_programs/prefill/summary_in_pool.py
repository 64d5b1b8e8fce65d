# Pooling reads summaries.
@program(page=16, block=64)
class Blocks:
    def summarize(k):
        return dict(centre=k.mean(token))

    def pool(q):
        return q.mean(query) + s.centre

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, 64)

# finding: unknown-name at 8:32
# says: unknown name s
# hint: score, attend
# fix 8:         return q.mean(query)
