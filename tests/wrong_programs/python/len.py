# The pages are counted with len.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, len(score) // 16)

# finding: unknown-function at 13:28
# says: len
# hint: ctx.pages
# fix 4:
# fix 5:
# fix 12:     def select(score, ctx):
# fix 13:         return topk(score, ctx.pages // 16)
