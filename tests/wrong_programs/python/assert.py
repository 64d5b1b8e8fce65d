# A method asserts.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        assert budget > 0
        return topk(score, budget)

# finding: not-in-language at 13:9
# says: assert budget > 0
# hint: leave it out
# fix 13:
