# topk is called as in torch.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, k=budget)

# finding: unknown-argument at 13:30
# says: no argument k
# hint: n
# fix 13:         return topk(score, n=budget)
