# A method has a function inside.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        def relevance(x):
            return dot(q, x, channel).max(head)
        return relevance(s.centre)

    def select(score):
        return topk(score, budget)

# finding: not-in-language at 10:9
# says: def relevance
# hint: no inner functions
# finding: unknown-function at 12:16
# fix 10:         return dot(q, s.centre, channel).max(head)
# fix 11:
# fix 12:
