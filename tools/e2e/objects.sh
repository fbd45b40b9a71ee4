# shellcheck shell=bash
# The user's objects that scenarios and the node's own test make, as YAML, in the namespace $NS or else in default.

# A claim; MODE is Block or Filesystem. Of a SNAPSHOT, if one is named.
claim() { # NAME MIB MODE [CLASS [SNAPSHOT]]
    cat <<YAML
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: $1, namespace: ${NS:-default}}
spec:
  accessModes: [ReadWriteOnce]
  storageClassName: ${4:-file}
  volumeMode: $3
  resources: {requests: {storage: $2Mi}}
  ${5:+dataSource: {apiGroup: snapshot.storage.k8s.io, kind: VolumeSnapshot, name: $5\}}
YAML
}

# A Pod that runs a script once with the claim at /dev/data (Block) or /data.
pod() { # NAME CLAIM MODE SCRIPT
    local use='volumeDevices: [{name: data, devicePath: /dev/data}]'
    [ "$3" = Block ] || use='volumeMounts: [{name: data, mountPath: /data}]'
    cat <<YAML
apiVersion: v1
kind: Pod
metadata: {name: $1, namespace: ${NS:-default}}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: $BUSYBOX
    imagePullPolicy: Never
    command: [sh, -ec, "$4"]
    $use
  volumes: [{name: data, persistentVolumeClaim: {claimName: $2}}]
YAML
}
