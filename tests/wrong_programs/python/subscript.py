# The first page is picked by its number.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score[1:], budget)

# finding: not-in-language at 13:21
# says: score[1:]
# hint: left out with among=
# fix 13:         return topk(score, budget, among=~first(1))
