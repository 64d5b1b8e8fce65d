# A number is beyond fp16 (warning).
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=maximum(k, -1e6).to("fp16").mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, budget)

# finding: dtype-overflow at 7:39
# says: infinite in fp16
# hint: bf16 or fp32
# fix 7:         return dict(centre=maximum(k, -1e6).to("bf16").mean(token))
