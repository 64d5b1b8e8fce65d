# Nothing reads a constant (warning).
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)
    recent = 4

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, budget)

# finding: unused-variable at 5:5
# says: nothing reads recent
# hint: remove
# fix 5:
