# shellcheck shell=bash
# longhorn#9791: no packet passes between worker and store while blocks go up; then they pass again
random_volume data 64
backup store data "${SLOW[@]}"
checksum=$(point_in_time store)
uploading store
tell "every packet between the Pods and the store is dropped"
no_packets_to_store
at=$SECONDS
within 15 "store in Error" is store Error # the stall deadline of 5 s and 5 s to end in order; the rest is this machine's
tell "it is an Error $((SECONDS - at)) s later: $(field store .status.failure.reason) at $(field store .status.failure.object)"
acknowledged=$(field store .status.progress.acknowledgedBlocks)
volume=$(field store .status.store.volume)
held=$(blocks_of "$volume")
# What was on the wire may have arrived without an answer: 32 at once, at most.
[ "$acknowledged" -gt 0 ] && [ "$acknowledged" -le "$held" ] && [ $((held - acknowledged)) -le 32 ] ||
    fail "$acknowledged acknowledged, $held in the bucket"
within 60 "a second attempt" attempt_is_at_least store 2
within 60 "the second attempt in Error too" failed_in_attempt store 2
tell "a second attempt failed too: the bucket still has $(blocks_of "$volume") blocks; packets pass again"
forget_cuts
completed store
# Resumed by the journal, if one was written before the cut, or found by the listing: never sent again.
kept=$(($(field store .status.progress.resumedBlocks) + $(field store .status.progress.reusedBlocks)))
[ "$kept" -ge "$acknowledged" ] || fail "of $acknowledged acknowledged blocks only $kept were kept"
[ "$(puts "$volume" | wc -l)" -ge 32 ] || fail "the store's log names $(puts "$volume" | wc -l) PUTs of 32 blocks"
[ -z "$(puts "$volume" | cut -d" " -f1 | sort | uniq -d)" ] || fail "sent twice: $(puts "$volume" | cut -d" " -f1 | sort | uniq -d)"
tell "Completed: $kept blocks kept, $(field store .status.progress.uploadedBlocks) sent, none twice by the store's own log"
restored_is store "$checksum"
nothing_left || fail "left over after it was Completed"
