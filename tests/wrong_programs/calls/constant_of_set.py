# A constant of the class is a set.
@program(page=16)
class Forced:
    sinks = first(1)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        forced = first(1) | last(4)
        return forced | topk(score, 64, among=~forced)

# finding: class-constant at 4:13
# says: neither a number nor a knob
# hint: sinks = 4
# fix 4:
# fix 5:
