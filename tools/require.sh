#!/usr/bin/env bash
# Say at once which tool is missing and what to install; called by the Makefile before any work starts.
set -euo pipefail
missing=0
for tool in "$@"; do
    if ! command -v "$tool" >/dev/null 2>&1; then
        case $tool in
            npm) mend="Node.js with npm (Debian: apt-get install npm); the emoji images come as npm packages" ;;
            python*) mend="Python 3.11 with venv (Debian: apt-get install python3 python3-venv), or name one: make PYTHON=/path/to/python3.11" ;;
            *) mend="it with your package manager" ;;
        esac
        echo "error: '$tool' was not found; install $mend" >&2
        missing=1
    elif [[ $tool == *python* ]]; then
        if ! "$tool" -c 'import sys; raise SystemExit(sys.version_info[:2] != (3, 11))'; then
            echo "error: $("$tool" --version) found; the pinned packages need Python 3.11: make PYTHON=/path/to/python3.11" >&2
            missing=1
        fi
        if ! "$tool" -c 'import venv, ensurepip' 2>/dev/null; then
            echo "error: '$tool' has no venv module; install python3-venv" >&2
            missing=1
        fi
    fi
done
exit $missing
