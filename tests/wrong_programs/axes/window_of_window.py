# Windows of windows make millions of numbers per page.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.window(token, a=64).window(token, b=64).window(token, c=64).max(a, b, c).mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, budget)

# finding: value-size at 7:28
# says: becomes too large
# hint: reduce an axis
# fix 7:         return dict(centre=k.window(token, a=5).max(a).mean(token))
