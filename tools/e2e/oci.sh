#!/usr/bin/env bash
# Packs a directory as a container image (OCI layout in a tar) without a daemon, a registry or a builder:
#
#   oci.sh NAME DIRECTORY ENTRYPOINT_JSON USER >image.tar
#
# The same directory gives the same bytes. `ctr images import`, `docker load`, `podman load` and skopeo read it.
set -euo pipefail
name=$1 directory=$2 entrypoint=$3 user=$4
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/blobs/sha256"
pack() { tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -C "$1" -cf - .; }

# blob <content: keeps it under its hash, prints {mediaType,digest,size}
blob() {
    local digest
    cat >"$work/blob"
    digest=$(sha256sum "$work/blob" | cut -d' ' -f1)
    mv "$work/blob" "$work/blobs/sha256/$digest"
    printf '"mediaType":"%s","digest":"sha256:%s","size":%s' "$1" "$digest" "$(stat -c %s "$work/blobs/sha256/$digest")"
}

architecture=$(case $(uname -m) in x86_64) echo amd64 ;; aarch64) echo arm64 ;; *) uname -m ;; esac)
pack "$directory" >"$work/layer.tar"
diff=$(sha256sum "$work/layer.tar" | cut -d' ' -f1)
layer=$(gzip -n -1 <"$work/layer.tar" | blob application/vnd.oci.image.layer.v1.tar+gzip)
rm "$work/layer.tar"
config=$(printf '{"architecture":"%s","os":"linux","config":{"Entrypoint":%s,"User":"%s"},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' \
    "$architecture" "$entrypoint" "$user" "$diff" | blob application/vnd.oci.image.config.v1+json)
manifest=$(printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{%s},"layers":[{%s}]}' \
    "$config" "$layer" | blob application/vnd.oci.image.manifest.v1+json)
printf '{"imageLayoutVersion":"1.0.0"}' >"$work/oci-layout"
printf '{"schemaVersion":2,"manifests":[{%s,"annotations":{"io.containerd.image.name":"%s","org.opencontainers.image.ref.name":"%s"}}]}' \
    "$manifest" "$name" "${name##*:}" >"$work/index.json"
pack "$work"
