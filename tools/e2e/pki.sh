#!/usr/bin/env bash
# Makes the node's certificates, keys and kubeconfigs in a directory: pki.sh DIR. Half a second, good for a year.
set -euo pipefail
# shellcheck source=tools/e2e/env.sh
. "$(dirname "$0")/env.sh"
mkdir -p "$1"
cd "$1"
umask 077
printf '[req]\ndistinguished_name=dn\n[dn]\n' >openssl.cnf

# certificate NAME SUBJECT EXTENSION…
certificate() {
    local name=$1 subject=$2 extension
    shift 2
    local arguments=()
    for extension in "$@"; do arguments+=(-addext "$extension"); done
    [ "$name" = ca ] || arguments+=(-addext "basicConstraints=critical,CA:FALSE" -CA ca.crt -CAkey ca.key)
    openssl req -config openssl.cnf -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 365 \
        -subj "$subject" -keyout "$name.key" -out "$name.crt" "${arguments[@]}" 2>openssl.log ||
        { cat openssl.log >&2; die "openssl could not make the certificate $name (above)"; }
}

# client NAME SUBJECT: a certificate and a kubeconfig that uses it
client() {
    certificate "$1" "$2" extendedKeyUsage=clientAuth
    cat >"$1.kubeconfig" <<EOF
apiVersion: v1
kind: Config
current-context: $NODE
clusters: [{name: $NODE, cluster: {server: "https://$API_IP:443", certificate-authority-data: $(base64 -w0 ca.crt)}}]
contexts: [{name: $NODE, context: {cluster: $NODE, user: $1}}]
users: [{name: $1, user: {client-certificate-data: $(base64 -w0 "$1.crt"), client-key-data: $(base64 -w0 "$1.key")}}]
EOF
}

certificate ca "/CN=$NODE" basicConstraints=critical,CA:TRUE keyUsage=critical,keyCertSign,cRLSign
certificate apiserver /CN=kube-apiserver extendedKeyUsage=serverAuth \
    "subjectAltName=IP:$API_IP,IP:$NODE_IP,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local"
certificate kubelet-server "/CN=$NODE" extendedKeyUsage=serverAuth "subjectAltName=IP:$NODE_IP,DNS:$NODE"
certificate metadata /CN=csi-snapshot-metadata extendedKeyUsage=serverAuth "subjectAltName=IP:$NODE_IP"
client admin /O=system:masters/CN=admin
client kubelet "/O=system:nodes/CN=system:node:$NODE"
client kube-controller-manager /CN=system:kube-controller-manager
client kube-scheduler /CN=system:kube-scheduler
openssl ecparam -name prime256v1 -genkey -noout -out service-accounts.key
openssl ec -in service-accounts.key -pubout -out service-accounts.pub 2>/dev/null
rm -f openssl.log openssl.cnf
