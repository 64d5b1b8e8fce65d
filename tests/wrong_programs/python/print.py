# A method prints.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        print(score)
        return topk(score, budget)

# finding: not-in-language at 13:9
# says: print(score)
# hint: remove it
# fix 13:
