# A method is misspelt.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def scores(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, budget)

# finding: unknown-method at 9:5
# says: no method scores
# hint: did you mean score?
# finding: score-missing at 12:16
# fix 9:     def score(q, s):
