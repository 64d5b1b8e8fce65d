# A slice ends at a computed place.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k, ctx):
        return dict(centre=k.slice(channel, 0, ctx.head_dim // 2).mean(token))

    def score(q, s):
        return dot(q.slice(channel, 0, 64), s.centre, channel).max(head)

    def select(score):
        return topk(score, budget)

# finding: slice-bound at 7:48
# says: whole numbers
# hint: x.slice(channel, 0, 64)
# fix 7:         return dict(centre=k.slice(channel, 0, 64).mean(token))
