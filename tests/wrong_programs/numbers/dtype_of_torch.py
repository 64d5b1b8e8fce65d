# A precision has the name that torch gives it.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token).to("bfloat16"))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, budget)

# finding: unknown-dtype at 7:45
# says: precision
# hint: bf16
# fix 7:         return dict(centre=k.mean(token).to("bf16"))
