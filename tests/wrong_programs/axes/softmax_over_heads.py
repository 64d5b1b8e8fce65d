# softmax runs over heads.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel)

    def select(score):
        return topk(softmax(score, head), budget)

# finding: softmax-axis at 13:36
# says: softmax runs over page
# hint: softmax(x, page)
# fix 13:         return topk(softmax(score, page), budget)
