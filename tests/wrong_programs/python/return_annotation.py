# A method says what it returns.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score) -> set:
        return topk(score, budget)

# finding: method-shape at 12:5
# says: plain parameters
# hint: annotations
# fix 12:     def select(score):
