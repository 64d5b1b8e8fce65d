# Pages are shifted by half a page.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head).shift(page, 0.5)

    def select(score):
        return topk(score, budget)

# finding: whole-number at 10:64
# says: whole number or an int knob
# hint: write a number
# fix 10:         return dot(q, s.centre, channel).max(head).shift(page, 1)
