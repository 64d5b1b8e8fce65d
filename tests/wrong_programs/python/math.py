# A constant of math is read.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head) / math.pi

    def select(score):
        return topk(score, budget)

# finding: unknown-name at 10:54
# says: unknown name math
# hint: write the number
# fix 10:         return dot(q, s.centre, channel).max(head) / 3.14159
