# A score is made by a lambda.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        relevance = lambda x: dot(q, x, channel).max(head)
        return relevance(s.centre)

    def select(score):
        return topk(score, budget)

# finding: not-in-language at 10:21
# says: lambda x
# hint: where it is used
# fix 10:         return dot(q, s.centre, channel).max(head)
# fix 11:
