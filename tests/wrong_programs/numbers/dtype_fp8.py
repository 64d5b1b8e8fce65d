# fp8 has two formats.
@program(page=16, summaries="fp8")
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, budget)

# finding: unknown-dtype at 2:29
# says: precision
# hint: fp8_e4m3
# fix 2: @program(page=16, summaries="fp8_e4m3")
