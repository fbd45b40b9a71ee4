# shellcheck shell=bash
# Workers without root, pod security restricted: named where the runtime keeps devices to root, both ways where it gives them
runtime_gives_devices() { # true|false: a runtime that was told otherwise is started again
    tools/e2e/enter.sh sed -i "s/\(device_ownership_from_security_context\) = .*/\1 = $1/" "$STATE/containerd/config.toml"
    kill_program containerd
    within 30 "the runtime" tools/e2e/enter.sh ctr version
}
before=$(tools/e2e/enter.sh sed -n 's/.*device_ownership_from_security_context = //p' "$STATE/containerd/config.toml")
random_volume data 48
expected=$(said_by reads-data data Block 'sha256sum </dev/data')

kubectl label namespace "$SYSTEM" pod-security.kubernetes.io/enforce=restricted pod-security.kubernetes.io/enforce-version=latest >>"$WORK/log"
runtime_gives_devices false
install --set worker.user=NonRoot >>"$WORK/log" 2>&1 || fail "no operator under restricted: $(tail -n 5 "$WORK/log")"
tell "restricted: operators are admitted; workers are told to be NonRoot"
backup kept-from-us data 'retry: {limit: 0}'
within 60 "an Error that says why" is kept-from-us Error
said=$(field kept-from-us .status.failure.message)
tell "the runtime keeps the device to root: $(field kept-from-us .status.reason): $said"
grep -q device_ownership_from_security_context <<<"$said" || fail "it does not say what to do"

runtime_gives_devices true
backup data data 'upload: {maxBytesPerSecond: 8Mi}'
uploading data
status=$(tools/e2e/enter.sh cat "/proc/$(process_of "$(worker_of data)")/status")
! grep -qP '^Uid:\t0' <<<"$status" || fail "the worker is root: $status"
completed data
restore back data again 'size: 48Mi'
KIND=tmr completed back
[ "$(said_by reads-again again Block 'head -c 50331648 /dev/data | sha256sum')" = "$expected" ] || fail "again is not what data was"
tell "the runtime gives it: backed up and restored by uid $(sed -n 's/^Uid:\t\([0-9]*\).*/\1/p' <<<"$status"), equal"

kubectl -n "$NS" delete tmr,tmb --all --wait --timeout=60s >>"$WORK/log"
runtime_gives_devices "$before"
kubectl label namespace "$SYSTEM" pod-security.kubernetes.io/enforce- pod-security.kubernetes.io/enforce-version- >>"$WORK/log"
install >>"$WORK/log" 2>&1 || fail "the operator was not put back: $(tail -n 5 "$WORK/log")"
