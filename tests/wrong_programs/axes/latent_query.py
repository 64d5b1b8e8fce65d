# The whole query meets a summary of the latent part.
@program(page=16)
class Latent:
    def summarize(k, ctx):
        return dict(latent=k.slice(channel, 0, ctx.latent).mean(token))

    def score(q, s, ctx):
        return dot(q, s.latent, channel).max(head)

    def select(score):
        return topk(score, 64)

# finding: axis-size at 8:16
# says: channels of a key and channels of a value
# hint: x.slice(channel, 0, ctx.latent)
# fix 8:         return dot(q.slice(channel, 0, ctx.latent), s.latent, channel).max(head)
