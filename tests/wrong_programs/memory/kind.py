# A memory does not say how long it lasts.
@program(page=16)
class RunningMass:
    mass = memory(page)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s, m):
        return 0.9 * m.mass + 0.1 * dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, 64)

    def remember(score):
        return dict(mass=score)

# finding: memory-kind at 4:12
# says: a step or for a layer
# hint: memory.step(page)
# fix 4:     mass = memory.step(page, init=0.0)
