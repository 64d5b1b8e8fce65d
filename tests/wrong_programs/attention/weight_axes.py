# A weight has channels.
@program(page=16)
class Gated:
    def summarize(k, v):
        return dict(keys=k.mean(token), values=v.mean(token))

    def score(q, s):
        return dot(q, s.keys, channel).max(head)

    def select(score):
        return topk(score, 32)

    def attend(q, s, pages):
        return 0.5 * attention(pages, log_weight=s.keys) + 0.5 * attention(keys=s.keys, values=s.values)

# finding: log-weight-axes at 14:50
# says: one number per page
# hint: channel
# fix 14:         return 0.5 * attention(pages, log_weight=s.keys.max(channel)) + 0.5 * attention(keys=s.keys, values=s.values)
