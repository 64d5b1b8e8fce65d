# A context manager is opened.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        with no_grad():
            return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, budget)

# finding: not-in-language at 10:9
# says: with no_grad()
# hint: leave it out
# finding: no-return at 9:5
# fix 10:         return dot(q, s.centre, channel).max(head)
# fix 11:
