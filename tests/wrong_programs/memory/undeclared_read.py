# A memory is read and not declared.
@program(page=16)
class Centroid:
    budget = knob.int(1, 512, log=True, default=64)

    def summarize(k):
        return dict(centre=k.mean(token))

    def score(q, s, m):
        return dot(q, s.centre, channel).max(head) + m.mass

    def select(score):
        return topk(score, budget)

# finding: unknown-member at 10:54
# says: m has no mass
# hint: memory.step(page)
# fix 4:     mass = memory.step(page)
# fix 4:     budget = knob.int(1, 512, log=True, default=64)
# fix 13:         return topk(score, budget)
# fix 13:
# fix 13:     def remember(score):
# fix 13:         return dict(mass=score)
