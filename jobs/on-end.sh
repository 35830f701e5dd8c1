#!/bin/sh
# For `on_end`: mail the run card of a run that a person must look at. Needs `mail`.
case $BATCHCAP_EXIT_CODE in 0 | 4 | 75) exit 0 ;; esac
card=$BATCHCAP_OUTPUT/__batchcap/RUN.md
if [ -z "$BATCHCAP_SUMMARY" ]; then card=/dev/null; fi  # the folder is another job's
{ echo "$BATCHCAP_MESSAGE"; echo; cat "$card"; } | mail -s "batchcap $BATCHCAP_JOB: exit code $BATCHCAP_EXIT_CODE" you@example.org
