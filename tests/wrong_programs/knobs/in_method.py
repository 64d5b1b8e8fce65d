# A knob is declared in a method.
@program(page=16)
class Centroid:
    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, knob.int(1, 512, default=64))

# finding: unknown-name at 11:28
# says: knob
# hint: class body
# fix 4:     budget = knob.int(1, 512, log=True, default=64)
# fix 4:
# fix 4:     def summarize(k):
# fix 11:         return topk(score, budget)
