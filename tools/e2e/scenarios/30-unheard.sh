# shellcheck shell=bash
# Nobody hears the worker, or the operators reach no API server: the upload goes on, nothing is called failed
steady='upload: {maxBytesPerSecond: 2Mi}' # a block a second
grows() { [ "$(blocks_of "$1")" -gt "$2" ]; }
catches_up() { acknowledged_at_least "$1" "$2"; }
heard_by() { [ "$(field "$1" .status.attempt.heardBy)" = "$2" ]; }
is_said_to_be() { [ "$(field "$1" .status.state)/$(field "$1" .status.reason)" = "$2" ]; }
restarts() { operators '.metadata.name} {.status.containerStatuses[0].restartCount' | sort; }
before=$(restarts)

# The worker: first its door is shut, and its log speaks for it; then the kubelet is away too, and nothing does.
random_volume data 160
backup silent data "$steady"
checksum=$(point_in_time silent)
uploading silent
volume=$(field silent .status.store.volume)
worker=$(worker_of silent)
tell "every packet between the worker and the operators is dropped"
# shellcheck disable=SC2046 # one address a word
no_packets_between "$worker" $(operators .status.podIP)
within 45 "silent heard by its log" heard_by silent Log
tell "it is heard by its log; now the kubelet is away as well"
keep_away kubelet
within 20 "silent said to be unheard" is_said_to_be silent InProgress/WorkerNotHeard
held=$(blocks_of "$volume")
within 20 "blocks that go up unheard" grows "$volume" "$((held + 3))"
tell "the upload goes on: $(blocks_of "$volume") blocks in the bucket, $(field silent .status.progress.acknowledgedBlocks) known"
held=$(blocks_of "$volume")
let_in kubelet
packets_again "$worker"
within 20 "the count of what went up unheard" catches_up silent "$held"
within 20 "silent heard at its door" heard_by silent HTTP
tell "it is heard again, and the count came up to $(field silent .status.progress.acknowledgedBlocks)"
completed silent 180
never_an_error silent
[ "$(field silent .status.attempt.number)" = 1 ] || fail "silent needed attempt $(field silent .status.attempt.number)"
restored_is silent "$checksum"

# Every operator is cut off from the API server for longer than their Lease lasts.
random_volume more 160
backup alone more "$steady"
checksum=$(point_in_time alone)
uploading alone
volume=$(field alone .status.store.volume)
known=$(field alone .status.progress.acknowledgedBlocks)
first=$(leader)
tell "no operator reaches the API server; $first leads"
# shellcheck disable=SC2046
no_packets_to_api $(operators .status.podIP)
held=$(blocks_of "$volume")
within 60 "20 blocks that go up while nobody can write it" grows "$volume" "$((held + 20))"
shown=$(field alone .status.progress.acknowledgedBlocks)
[ "$shown" -le $((known + 6)) ] || fail "status went on from $known to $shown without an operator"
held=$(blocks_of "$volume")
tell "status still says $shown, the bucket holds $held blocks; packets pass again"
forget_cuts
within 45 "the count of what went up meanwhile" catches_up alone "$held"
tell "$(leader) leads, and the count is $(field alone .status.progress.acknowledgedBlocks)"

# The leader alone is cut off: another one takes over, and the old one has to see it.
within 10 "a leader" somebody_leads
first=$(leader)
tell "$first, which leads, is cut off from the API server"
no_packets_to_api "$(kubectl -n "$SYSTEM" get pod "$first" -o jsonpath='{.status.podIP}')"
within 45 "another leader" somebody_else_leads "$first"
held=$(blocks_of "$volume")
within 30 "a count by the new leader" catches_up alone "$held"
tell "$(leader) leads and counts on: $(field alone .status.progress.acknowledgedBlocks)"
forget_cuts
completed alone 180
never_an_error alone
[ "$(field alone .status.attempt.number)" = 1 ] || fail "alone needed attempt $(field alone .status.attempt.number)"
restored_is alone "$checksum"
[ "$(restarts)" = "$before" ] || fail "operators were restarted: $(restarts) after $before"
