# remember writes what is not declared.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s):
        return dot(q, s.centre, channel).max(head)

    def select(score):
        return topk(score, budget)

    def remember(score):
        return dict(mass=score)

# finding: unknown-memory at 16:26
# says: no memory mass
# hint: memory.step(page)
# fix 4:     mass = memory.step(page)
# fix 4:     budget = knob.int(1, 512, log=True, default=64)
# fix 12:     def select(score, m):
# fix 13:         return topk(0.5 * score + 0.5 * m.mass, budget)
