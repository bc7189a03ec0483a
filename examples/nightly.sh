#!/bin/sh
# Score the drawings that have arrived since the last run. For cron, at 2 o'clock every night:
#   PATH=/opt/sketchbatch/bin:/usr/bin:/bin
#   0 2 * * * SKETCHBATCH_SERVER=service:50051 /opt/sketchbatch/nightly.sh /data/labels.parquet /data/drawings
# The first line names the folder of the command `sketchbatch`, because cron has a short PATH. Needs flock (Debian:
# util-linux; macOS: brew install flock).
set -u
[ $# -ge 2 ] || { echo "usage: nightly.sh OUTPUT DRAWINGS ..." >&2; exit 2; }
output=$1
shift
attempts=${ATTEMPTS:-5}
wait_s=${WAIT_S:-300}

# Only one run at a time. The system releases the lock when the script ends, also after a crash.
command -v flock >/dev/null || { echo "error: flock must be installed" >&2; exit 127; }
exec 9>"$output.lock" || exit 1
flock -n 9 || { echo "error: the previous run still holds $output.lock" >&2; exit 1; }

# --timeout-s is the deadline of a request with its retries: the job survives a restart of the service that takes less. If
# the service does not respond at the start of the job, the command gives up after seconds, and the loop repeats it.
# --append scores new files and new rows only. An interrupted run resumes with the same command.
attempt=1
while :; do
  code=0
  sketchbatch score "$@" --output "$output" --append --timeout-s 60 --quiet || code=$?
  [ "$code" = 1 ] && [ "$attempt" -lt "$attempts" ] || break
  echo "attempt $attempt of $attempts failed; the next one starts in $wait_s s" >&2
  attempt=$((attempt + 1))
  sleep "$wait_s"
done

details=$output.manifest.json
rejects=$output.rejects.jsonl
[ -e "$rejects" ] && details="$rejects and $details"
case $code in
  0)
    echo "$output is up to date"
    [ -s "$rejects" ] && echo "rows rejected so far: $(($(wc -l < "$rejects"))), see $rejects"
    ;;
  1) echo "error: $attempts attempts failed; the next run resumes the job" >&2 ;;
  3) echo "warning: some drawings were not read; see $details" >&2 ;;
  *) echo "error: exit code $code; a retry cannot succeed, so correct the cause" >&2 ;;
esac
exit "$code"
