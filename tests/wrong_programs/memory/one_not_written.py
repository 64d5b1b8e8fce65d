# remember writes one memory of two.
@program(page=16)
class RunningMass:
    mass = memory.step(page, init=0.0)
    peak = memory.step(page)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s, m):
        return 0.9 * m.mass + m.peak + 0.1 * dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, 64)

    def remember(score):
        return dict(mass=score)

# finding: memory-not-written at 17:9
# says: does not write the memory peak
# hint: peak=m.peak
# fix 16:     def remember(score, m):
# fix 17:         return dict(mass=score, peak=maximum(m.peak, score))
