# A function of torch is called.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return torch.topk(score, budget)

# finding: unknown-name at 13:16
# says: unknown name torch
# hint: topk(score, n
# fix 13:         return topk(score, budget)
