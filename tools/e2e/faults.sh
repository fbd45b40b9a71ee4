# shellcheck shell=bash
# What goes wrong, on purpose. Sourced by library.sh; `forget_faults` ends all of it, after each scenario too.

# --- Packets

# Packets between Pods and host are routed: they pass the node's filters.
no_packets_to_store() { tools/e2e/enter.sh sh -c "iptables -I FORWARD -d $HOST_IP -p tcp --dport ${STORE#*:} -j DROP; iptables -I FORWARD -s $HOST_IP -p tcp --sport ${STORE#*:} -j DROP"; }
# The API server's address is the node's own.
no_packets_to_api() { # POD-ADDRESS…
    local address
    for address; do
        tools/e2e/enter.sh sh -c "iptables -I INPUT -s $address -d $API_IP -j DROP; iptables -I OUTPUT -s $API_IP -d $address -j DROP"
    done
}
# Packets from Pod to Pod are bridged and pass no filter but those of the Pods' own namespaces.
no_packets_between() { # POD ADDRESS…
    local pod=$1 address
    shift
    for address; do
        in_pod "$pod" iptables -I INPUT -s "$address" -j DROP
        in_pod "$pod" iptables -I OUTPUT -d "$address" -j DROP
    done
}
# The node's end of a Pod's wire.
wire_of() { # POD
    local index
    index=$(in_pod "$1" ip -o link show eth0 | sed -n 's/.*eth0@if\([0-9]*\):.*/\1/p')
    [ -n "$index" ] || fail "Pod $1 has no eth0 with another end"
    tools/e2e/enter.sh ip -o link show | sed -n "s/^$index: \([^@]*\)@.*/\1/p"
}
# So much passes towards the Pod: at 6kbit an answer of the store takes half a second. What the Pod sends is not slowed.
slow_answers() { tools/e2e/enter.sh tc qdisc replace dev "$1" root tbf rate "$2" burst 1600 limit 1000000; } # WIRE RATE
quick_answers() { tools/e2e/enter.sh tc qdisc del dev "$1" root 2>/dev/null || true; } # WIRE; it may have gone with its Pod
packets_again() { in_pod "$1" sh -c 'iptables -F INPUT; iptables -F OUTPUT'; } # POD
forget_cuts() { tools/e2e/enter.sh sh -c 'iptables -F FORWARD; iptables -F INPUT; iptables -F OUTPUT'; }

# A program of the node with the network of an operator's or a worker's Pod.
in_pod() { # POD COMMAND…
    local pid
    pid=$(process_of "$1")
    [ -n "$pid" ] || fail "Pod $1 has no process"
    shift
    tools/e2e/enter.sh nsenter --net="/proc/$pid/ns/net" "$@"
}
# The process of a Pod of ours, as the node numbers it; nothing if it does not run.
process_of() { # POD
    # shellcheck disable=SC2016
    tools/e2e/enter.sh sh -c 'id=$(ctr containers ls -q "labels.\"io.kubernetes.pod.name\"==$1,labels.\"io.cri-containerd.kind\"==container")
        [ -z "$id" ] || ctr tasks ls | awk -v ids="$(echo $id)" "BEGIN { split(ids, all); for (i in all) is[all[i]] } \$1 in is && \$3 == \"RUNNING\" { print \$2 }"' _ "$1" | head -n 1
}

# --- Programs of the node

pid_of() { tools/e2e/enter.sh cat "$STATE/pid/$1"; }
# Ended as by a power cut; node.sh starts it again half a second later.
kill_program() { # NAME
    local before
    before=$(pid_of "$1")
    tools/e2e/enter.sh kill -KILL "$before"
    within 15 "$1 started again" runs_again "$1" "$before"
}
runs_again() { local pid; pid=$(pid_of "$1") && [ "$pid" != "$2" ] && tools/e2e/enter.sh kill -0 "$pid"; }
# It stays away until `let_in`.
keep_away() { # NAME
    touch "$RUN/hold/$1"
    tools/e2e/enter.sh kill -KILL "$(pid_of "$1")"
}
let_in() { # NAME
    local before
    before=$(pid_of "$1")
    rm "$RUN/hold/$1"
    within 15 "$1 started again" runs_again "$1" "$before"
}

# --- Workers

# The worker's Pod of the newest attempt of a Backup, or where $KIND is tmr of a Restore.
worker_of() { kubectl -n "$SYSTEM" get pods -l "tidemark.dev/attempt=$(field "$1" .metadata.uid)-${2:-$(field "$1" .status.attempt.number)}" -o jsonpath='{.items[0].metadata.name}' 2>>"$WORK/log"; } # NAME [ATTEMPT]
has_worker() { [ -n "$(worker_of "$1")" ]; }
kill_worker() { # BACKUP: the process, and not the Pod
    local pid
    pid=$(process_of "$(worker_of "$1")")
    [ -n "$pid" ] || fail "the worker of $1 does not run"
    tools/e2e/enter.sh kill -KILL "$pid"
}
delete_worker() { # NAME
    kubectl -n "$SYSTEM" delete pod "$(worker_of "$1")" --force --grace-period=0 >>"$WORK/log" 2>&1 || fail "there is no worker of $1 to delete"
}

# --- The store

# Stopped, it holds its connections and answers nothing.
pause_store() { kill -STOP "$(cat "$WORK/store.pid")"; }
resume_store() { kill -CONT "$(cat "$WORK/store.pid")"; }

forget_faults() {
    forget_cuts
    rm -f "$RUN"/hold/*
    resume_store
}
