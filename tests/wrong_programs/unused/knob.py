# Nothing depends on a knob (warning).
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, 64)

# finding: unused-knob at 4:5
# says: knob budget
# hint: use budget
# fix 13:         return topk(score, budget)
