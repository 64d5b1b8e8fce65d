"""Programs in Hugging Face transformers. The release is looked at before anything of it is used."""

import transformers

from vortexlab.deploy import engines

engines.check_version(
    engines.find("transformers"), transformers.__version__, "load the model without it (attn_implementation='sdpa')"
)
