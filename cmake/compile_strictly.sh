#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs a compiler command and fails where ptxas only mentions a "Potential Performance Loss": wgmma that it serialises
# (C7510, C7511 ...) or setmaxnreg that it ignores (C7508). These are no warnings, so --warning-as-error passes them.
messages=$("$@" 2>&1)
status=$?
[ -z "$messages" ] || printf '%s\n' "$messages" >&2
[ "$status" -eq 0 ] || exit "$status"
case $messages in
*"Potential Performance Loss"*) ;;
*) exit 0 ;;
esac

echo "error: AAPT_STRICT: expected no potential performance loss, got the message of ptxas above" >&2
# An object that stays would count as built.
while [ $# -gt 1 ]; do
  if [ "$1" = -o ]; then rm -f "$2"; fi
  shift
done
exit 1
