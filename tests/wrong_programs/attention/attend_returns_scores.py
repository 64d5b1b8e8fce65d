# attend returns a score.
@program(page=16)
class Gated:
    def summarize(k, v):
        return dict(keys=k.mean(token), values=v.mean(token))

    def score(q, s):
        return dot(q, s.keys, channel).max(head)

    def select(score):
        return topk(score, 32)

    def attend(q, s, pages):
        return dot(q, s.keys, channel) + s.values.max(channel)

# finding: attend-shape at 14:9
# says: output of every query head
# hint: log_weight=w
# fix 14:         return 0.5 * attention(pages) + 0.5 * attention(keys=s.keys, values=s.values)
