"""One session of a campaign on a cluster with fake evaluators, for a test that kills it."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from campaign_fakes import config
from test_cluster import CONFIG, Sleepy

from vortexlab.agent.campaign import Campaign
from vortexlab.agent.cluster import Cluster, leave
from vortexlab.dsl.errors import VortexError

if __name__ == "__main__":
    address, runs, evaluations = sys.argv[1:]
    pool = Cluster(replace(CONFIG, seconds=200.0), address, make=Sleepy)
    settings = config(Path(runs), parallel=4, evaluations=int(evaluations))
    try:
        Campaign(settings, pool=pool).run(lambda state: print(state.phase, state.recorded, flush=True))
    except VortexError as error:
        print(error, file=sys.stderr)
        leave(2)
