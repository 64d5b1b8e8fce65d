# Blocks and pages do not meet.
@program(page=16, block=24)
class Blocks:
    def summarize(k):
        return dict(centre=k.mean(token))

    def pool(q):
        return q.mean(query)

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, 64)

# finding: block-size at 2:25
# says: do not meet
# hint: powers of two
# fix 2: @program(page=16, block=64)
