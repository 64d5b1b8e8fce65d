# What stands beyond the ends is computed.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head).shift(page, 1, fill=s.centre.max(page).max(channel))

    def select(score):
        return topk(score, budget)

# finding: fill-value at 10:72
# says: a number or a knob
# hint: write the number out
# fix 10:         return dot(q, s.centre, channel).max(head).shift(page, 1, fill=0.0)
