# What a page begins with is a truth value.
@program(page=16)
class RunningMass:
    mass = memory.step(page, init=False)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s, m):
        return 0.9 * m.mass + 0.1 * dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, 64)

    def remember(score):
        return dict(mass=score)

# finding: memory-option at 4:35
# says: init is a number
# hint: begins with
# fix 4:     mass = memory.step(page, init=0.0)
