# The range of an int knob is one of floats.
@program(page=16)
class Centroid:
    budget = knob.int(1.0, 512.0, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, budget)

# finding: knob-values at 4:14
# says: lowest and its highest int
# hint: of kind int
# fix 4:     budget = knob.int(1, 512, default=64)
