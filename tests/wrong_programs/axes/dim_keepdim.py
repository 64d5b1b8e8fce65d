# A reduction is written as in torch.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head, keepdim=True)

    def select(score):
        return topk(score, budget)

# finding: argument-count at 10:16
# says: names of the axes
# hint: x.max(head)
# fix 10:         return dot(q, s.centre, channel).max(head)
