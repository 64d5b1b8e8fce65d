# A value is rounded to a precision without quotes.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token).to(bf16))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, budget)

# finding: unknown-dtype at 7:45
# says: in quotes
# hint: "bf16"
# fix 7:         return dict(centre=k.mean(token).to("bf16"))
