# The page size is set as a constant of the class.
@program(page=16)
class Centroid:
    page = 32
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, budget)

# finding: name-taken at 4:5
# says: page is a word of the language
# hint: @program(page=32)
# fix 2: @program(page=32)
# fix 4:
