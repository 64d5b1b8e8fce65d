# A score per query head is shared.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel)

    def select(score):
        return topk(share(score, "max"), budget)

# finding: share-axes at 13:21
# says: the axis page alone
# hint: .max(head)
# fix 13:         return topk(share(score.max(head), "max"), budget)
