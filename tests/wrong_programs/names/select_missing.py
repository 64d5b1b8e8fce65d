# Nothing is selected.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

# finding: select-missing at 3:1
# says: does not select
# hint: def select(score)
# fix 10:         return dot(q, s.centre, channel).max(head)
# fix 10:
# fix 10:     def select(score):
# fix 10:         return topk(score, budget)
