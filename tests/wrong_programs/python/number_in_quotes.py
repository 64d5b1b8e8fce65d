# A number stands in quotes.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, "64")

# finding: text-as-value at 13:28
# says: text is not a value
# hint: without quotes
# fix 13:         return topk(score, budget)
