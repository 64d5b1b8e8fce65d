# Keys are finer than values.
@program(page=16)
class Gated:
    def summarize(k, v):
        return dict(keys=k.split(token, part=4).mean(token), values=v.mean(token))

    def score(q, s):
        return dot(q, s.keys, channel).max(part).max(head)

    def select(score):
        return topk(score, 32)

    def attend(q, s, pages):
        return 0.5 * attention(pages) + 0.5 * attention(keys=s.keys, values=s.values)

# finding: attention-entries at 14:77
# says: different axes
# hint: same splits
# fix 5:         return dict(keys=k.split(token, part=4).mean(token), values=v.split(token, part=4).mean(token))
