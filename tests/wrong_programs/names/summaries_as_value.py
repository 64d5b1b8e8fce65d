# The score multiplies all summaries at once.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s, channel).max(head)

    def select(score):
        return topk(score, budget)

# finding: record-as-value at 10:23
# says: s is not a value by itself
# hint: s.centre
# fix 10:         return dot(q, s.centre, channel).max(head)
