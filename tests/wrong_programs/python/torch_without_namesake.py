# A function of torch has another name here.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=torch.cat(k.mean(token), k.max(token)))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, budget)

# finding: unknown-name at 7:28
# says: unknown name torch
# hint: concat(a, b, axis)
# fix 7:         return dict(centre=concat(k.mean(token), k.max(token), channel))
# fix 10:         return dot(concat(q, q, channel), s.centre, channel).max(head)
