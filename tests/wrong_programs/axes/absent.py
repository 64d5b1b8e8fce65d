# The summary has lost its tokens, and the score names them.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, token).max(head)

    def select(score):
        return topk(score, budget)

# finding: axis-missing at 10:33
# says: no axis token
# hint: channel
# fix 10:         return dot(q, s.centre, channel).max(head)
