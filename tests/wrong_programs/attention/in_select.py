# select computes the output.
@program(page=16)
class Gated:
    def summarize(k, v):
        return dict(keys=k.mean(token), values=v.mean(token))

    def score(q, s):
        return dot(q, s.keys, channel).max(head)

    def select(score):
        return attention(topk(score, 32))

    def attend(q, s, pages):
        return 0.5 * attention(pages) + 0.5 * attention(keys=s.keys, values=s.values)

# finding: attention-place at 11:16
# says: which attend returns
# hint: stands in attend
# fix 11:         return topk(score, 32)
