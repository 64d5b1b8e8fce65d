# max= has no name.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topp(score, 0.95, budget)

# finding: argument-count at 13:34
# says: too many
# hint: max=budget
# fix 13:         return topp(score, 0.95, max=budget)
