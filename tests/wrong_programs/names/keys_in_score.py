# The score reads the keys of all tokens.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, k, channel).max(head)

    def select(score):
        return topk(score, budget)

# finding: unknown-name at 10:23
# says: unknown name k
# hint: make a summary
# fix 10:         return dot(q, s.centre, channel).max(head)
