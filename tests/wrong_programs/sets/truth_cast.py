# A truth value is rounded.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=(k > 0.0).to("bf16").mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, budget)

# finding: cast-kind at 7:41
# says: only floats
# hint: float(x)
# fix 7:         return dict(centre=float(k > 0.0).to("bf16").mean(token))
