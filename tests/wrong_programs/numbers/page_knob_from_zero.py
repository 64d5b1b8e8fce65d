# A page size may become 0.
@program(page=knob.int(0, 64, default=16))
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, budget)

# finding: page-size at 2:15
# says: whole numbers of tokens
# hint: knob.choice(8, 16, 32, 64
# fix 2: @program(page=knob.choice(8, 16, 32, 64, default=16))
