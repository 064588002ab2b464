#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs the stages of a build from source, one after the other, in a container or on the machine itself.
#
#     run.sh DIRECTORY
#
# DIRECTORY/recipe has env.sh (variables for every stage) and the list "stages". A line of it is a stage: its name,
# script, limit in seconds, key, the name of its output, and its variables (words without blanks), separated by "|".
# DIRECTORY/state.json says at any time how far the build is; it is replaced by rename. DIRECTORY/done/NAME has the key
# of a stage that is done. The standard input is a locked file, which tells others that this process lives.
set -u
build=$1
. "$build/recipe/env.sh"
umask 022
name=
child=
number=0
total=$(wc -l <"$build/recipe/stages")

# The state, the stage's exit code (null while it runs), and the time in seconds since 1970.
say() {
    printf '{"state": "%s", "stage": "%s", "number": %d, "of": %d, "exit": %s, "started": %s, "at": %s}\n' \
        "$1" "$name" "$number" "$total" "$2" "$started" "$(date +%s)" >"$build/state.json.new" &&
        mv "$build/state.json.new" "$build/state.json"
}

stop() {
    [ -z "$child" ] || kill -TERM "$child" 2>/dev/null
    say stopped 143
    exit 143
}
trap stop TERM INT
trap '' HUP

while IFS='|' read -r name script limit key output variables <&3; do
    number=$((number + 1))
    started=$(date +%s)
    say running null || exit 1
    rm -rf "$build/work/$name" "$build/out/$name" "$build/done/$name"
    mkdir -p "$build/work/$name" "$build/out/$name" || { say failed 1; exit 1; }
    # timeout runs the script in a process group of its own, and ends all of it.
    env SOURCES="$build/sources/$name" WORK="$build/work/$name" OUT="$build/out/$name${output:+/$output}" $variables \
        timeout -k 30 "$limit" "$build/recipe/$script" >"$build/log/$name.log" 2>&1 </dev/null 3<&- &
    child=$!
    wait "$child"
    code=$?
    child=
    [ "$code" -eq 0 ] || { say failed "$code"; exit "$code"; }
    rm -rf "$build/work/$name"
    printf '%s\n' "$key" >"$build/done/$name.new" && mv "$build/done/$name.new" "$build/done/$name" || exit 1
done 3<"$build/recipe/stages"
started=$(date +%s)
name=
say finished 0
