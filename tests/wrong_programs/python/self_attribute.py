# A knob is read from self.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, self.budget)

# finding: unknown-name at 13:28
# says: unknown name self
# hint: write budget
# fix 13:         return topk(score, budget)
