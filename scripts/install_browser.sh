#!/usr/bin/env bash
# Usage: install_browser.sh PYTHON
# Finds or installs the Chromium of the report's tests: the one that VORTEX_CHROMIUM names, one of the system, from
# Debian's packages where we may install them (with the libraries that it needs), or playwright's own.
set -euo pipefail
python=$1

[ -n "${VORTEX_CHROMIUM:-}" ] && exit 0
for name in chromium chromium-browser google-chrome; do
    command -v "$name" >/dev/null && exit 0
done
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    if { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install --yes chromium; } >/dev/null 2>&1; then exit 0; fi
fi
if "$python" -m playwright install chromium; then exit 0; fi
echo "no Chromium was found and none could be installed: install it from your system's packages, or name one in VORTEX_CHROMIUM" >&2
exit 2
