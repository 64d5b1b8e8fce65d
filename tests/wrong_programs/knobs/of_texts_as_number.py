# A choice of texts is a budget.
@program(page=16)
class Centroid:
    budget = knob.choice("64", "128", default="64")

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, budget)

# finding: text-as-value at 13:28
# says: text is not a value
# hint: without quotes
# fix 4:     budget = knob.choice(64, 128, default=64)
