# A memory is read and nothing writes it.
@program(page=16)
class RunningMass:
    mass = memory.step(page, init=0.0)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s, m):
        return 0.9 * m.mass + 0.1 * dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, 64)

# finding: memory-not-written at 4:5
# says: nothing is ever written
# hint: def remember
# fix 13:         return topk(score, 64)
# fix 13:
# fix 13:     def remember(score):
# fix 13:         return dict(mass=score)
