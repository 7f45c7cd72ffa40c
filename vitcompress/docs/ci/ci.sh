#!/bin/sh
# Compression that says no, for any CI service:
#
#   sh ci.sh RECIPE [MODEL] [options of `vitcompress run`]
#
# It ends as `vitcompress run` does: 0 all gates hold · 1 a gate failed · 2 wrong input · 3 the run
# failed · 4 the exported model computes something else. From the environment:
#
#   OUT        the output folder (out/ci)
#   REPORTS    where report.md, report.html, report.json, junit.xml and run.log are copied, whether
#              the gates hold or not, for the service to keep and to show (reports)
#   BASELINE   the report.json of the last run that was accepted; where there is such a file, the
#              new run must not be worse by more than `gates.against` in the recipe allows
#   VITCOMPRESS_CALIBRATION, VITCOMPRESS_EVALUATION, VITCOMPRESS_CLASSES   the images
set -u
out=${OUT:-out/ci}
reports=${REPORTS:-reports}

if [ -f "${BASELINE:-}" ]; then
    set -- "$@" --against "$BASELINE"
fi
vitcompress run "$@" --out "$out"
code=$?

if [ "$code" -le 1 ]; then # there is an output
    mkdir -p "$reports" || exit
    for file in report.md report.html report.json junit.xml run.log; do
        cp "$out/$file" "$reports/" || exit
    done
elif [ -f "$out.failed.log" ]; then
    mkdir -p "$reports" && cp "$out.failed.log" "$reports/run.log"
fi
exit "$code"
