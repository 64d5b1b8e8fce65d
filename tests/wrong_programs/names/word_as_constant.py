# A word of the language is given a value.
@program(page=16)
class Centroid:
    topk = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, 64)

# finding: name-taken at 4:5
# says: topk is a word of the language
# hint: another name
# fix 4:     budget = knob.int(1, 512, log=True, default=64)
# fix 13:         return topk(score, budget)
