# among= is to limit tokens.
@program(page=16)
class Gated:
    def summarize(k, v):
        return dict(keys=k.mean(token), values=v.mean(token))

    def score(q, s):
        return dot(q, s.keys, channel).max(head)

    def select(score):
        return topk(score, 32)

    def attend(q, s, pages):
        return 0.5 * attention(pages, among=first(8)) + 0.5 * attention(keys=s.keys, values=s.values)

# finding: attention-parts at 14:22
# says: limits entries
# hint: attention(pages & other)
# fix 14:         return 0.5 * attention(pages & first(8)) + 0.5 * attention(keys=s.keys, values=s.values)
