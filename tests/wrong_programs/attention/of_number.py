# attention is told a number of pages.
@program(page=16)
class Gated:
    def summarize(k, v):
        return dict(keys=k.mean(token), values=v.mean(token))

    def score(q, s):
        return dot(q, s.keys, channel).max(head)

    def select(score):
        return topk(score, 32)

    def attend(q, s, pages):
        return 0.5 * attention(32) + 0.5 * attention(keys=s.keys, values=s.values)

# finding: not-a-set at 14:32
# says: must be a set
# hint: first(n)
# fix 14:         return 0.5 * attention(first(32)) + 0.5 * attention(keys=s.keys, values=s.values)
