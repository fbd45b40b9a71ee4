package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
)

type nodeServer struct {
	csi.UnimplementedNodeServer
	store *store
	node  string
	lock  sync.Mutex
}

func (n *nodeServer) NodeGetInfo(context.Context, *csi.NodeGetInfoRequest) (*csi.NodeGetInfoResponse, error) {
	return &csi.NodeGetInfoResponse{
		NodeId: n.node, AccessibleTopology: &csi.Topology{Segments: map[string]string{topologyNode: n.node}},
	}, nil
}

func (n *nodeServer) NodeGetCapabilities(context.Context, *csi.NodeGetCapabilitiesRequest) (*csi.NodeGetCapabilitiesResponse, error) {
	answer := &csi.NodeGetCapabilitiesResponse{}
	for _, can := range []csi.NodeServiceCapability_RPC_Type{
		csi.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME,
		csi.NodeServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER,
	} {
		answer.Capabilities = append(answer.Capabilities, &csi.NodeServiceCapability{
			Type: &csi.NodeServiceCapability_Rpc{Rpc: &csi.NodeServiceCapability_RPC{Type: can}},
		})
	}
	return answer, nil
}

// Stage: the volume becomes a block device of the node; a filesystem volume is formatted if it is blank, and mounted.
func (n *nodeServer) NodeStageVolume(_ context.Context, request *csi.NodeStageVolumeRequest) (*csi.NodeStageVolumeResponse, error) {
	n.lock.Lock()
	defer n.lock.Unlock()
	found, err := n.store.find(volumes, request.VolumeId)
	if err != nil {
		return nil, err
	}
	if found == nil {
		return nil, refused(codes.NotFound, "There is no volume %q", request.VolumeId)
	}
	readOnly := request.VolumeCapability.GetAccessMode().GetMode() == csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY
	device, err := attach(n.store.disk(volumes, request.VolumeId), readOnly)
	if err != nil {
		return nil, err
	}
	mount := request.VolumeCapability.GetMount()
	if mount == nil || isMounted(request.StagingTargetPath) {
		return &csi.NodeStageVolumeResponse{}, nil
	}
	filesystem := mount.FsType
	if filesystem == "" {
		filesystem = "ext4"
	}
	options := mount.MountFlags
	if filesystem == "xfs" {
		options = append(options, "nouuid") // A volume restored from a snapshot has its source's.
	}
	if readOnly {
		options = append(options, "ro")
	} else if err := formatIfBlank(device, filesystem); err != nil {
		return nil, err
	}
	arguments := []string{"-t", filesystem, device, request.StagingTargetPath}
	if len(options) > 0 {
		arguments = append([]string{"-o", strings.Join(options, ",")}, arguments...)
	}
	return &csi.NodeStageVolumeResponse{}, run("mount", arguments...)
}

func (n *nodeServer) NodeUnstageVolume(_ context.Context, request *csi.NodeUnstageVolumeRequest) (*csi.NodeUnstageVolumeResponse, error) {
	n.lock.Lock()
	defer n.lock.Unlock()
	if err := unmount(request.StagingTargetPath); err != nil {
		return nil, err
	}
	return &csi.NodeUnstageVolumeResponse{}, detach(n.store.disk(volumes, request.VolumeId))
}

// Publish: the device, or the mounted filesystem, appears where the kubelet wants it for one pod.
func (n *nodeServer) NodePublishVolume(_ context.Context, request *csi.NodePublishVolumeRequest) (*csi.NodePublishVolumeResponse, error) {
	n.lock.Lock()
	defer n.lock.Unlock()
	target := request.TargetPath
	if isMounted(target) {
		return &csi.NodePublishVolumeResponse{}, nil
	}
	if err := os.MkdirAll(filepath.Dir(target), 0o750); err != nil {
		return nil, err
	}
	from := request.StagingTargetPath
	if request.VolumeCapability.GetBlock() != nil {
		devices, err := devicesOf(n.store.disk(volumes, request.VolumeId))
		if err != nil {
			return nil, err
		}
		if len(devices) == 0 {
			return nil, refused(codes.FailedPrecondition, "Volume %q is not staged", request.VolumeId)
		}
		from = devices[0]
		file, err := os.OpenFile(target, os.O_CREATE, 0o640)
		if err != nil {
			return nil, err
		}
		if err := file.Close(); err != nil {
			return nil, err
		}
	} else if err := os.MkdirAll(target, 0o750); err != nil {
		return nil, err
	}
	options := "bind"
	if request.Readonly {
		options = "bind,ro"
	}
	return &csi.NodePublishVolumeResponse{}, run("mount", "-o", options, from, target)
}

func (n *nodeServer) NodeUnpublishVolume(_ context.Context, request *csi.NodeUnpublishVolumeRequest) (*csi.NodeUnpublishVolumeResponse, error) {
	n.lock.Lock()
	defer n.lock.Unlock()
	if err := unmount(request.TargetPath); err != nil {
		return nil, err
	}
	if err := os.Remove(request.TargetPath); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return &csi.NodeUnpublishVolumeResponse{}, nil
}

// devicesOf answers the loop devices of a file; none if the file is not there.
func devicesOf(file string) ([]string, error) {
	if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	said, err := exec.Command("losetup", "--associated", file, "--noheadings", "--output", "NAME").Output()
	if err != nil {
		return nil, fmt.Errorf("losetup --associated %s: %w", file, err)
	}
	return strings.Fields(string(said)), nil
}

func attach(file string, readOnly bool) (string, error) {
	devices, err := devicesOf(file)
	if err != nil {
		return "", err
	}
	if len(devices) > 0 {
		return devices[0], nil
	}
	// Not direct: the device's block would become the filesystem's as soon as the file shares blocks, so a volume restored
	// from a snapshot had blocks of another size (4096) than its source (512), and an ext4 of small blocks no longer fits.
	arguments := []string{"--find", "--show", "--direct-io=off", file}
	if readOnly {
		arguments = append([]string{"--read-only"}, arguments...)
	}
	said, err := exec.Command("losetup", arguments...).Output()
	if err != nil {
		return "", fmt.Errorf("losetup --find %s: %w", file, err)
	}
	return strings.TrimSpace(string(said)), nil
}

func detach(file string) error {
	devices, err := devicesOf(file)
	for _, device := range devices {
		err = errors.Join(err, run("losetup", "--detach", device))
	}
	return err
}

// flush writes what the page cache holds of a volume's device into its file. What a filesystem above the device holds is
// not part of it: a snapshot is what the disk had, as with any storage.
func flush(file string) error {
	devices, err := devicesOf(file)
	if err != nil {
		return err
	}
	for _, name := range devices {
		device, err := os.Open(name)
		if err != nil {
			return err
		}
		if err := errors.Join(device.Sync(), device.Close()); err != nil {
			return err
		}
	}
	return nil
}

func formatIfBlank(device, filesystem string) error {
	err := exec.Command("blkid", "--probe", device).Run()
	var ended *exec.ExitError
	if err == nil {
		return nil // There is something on it: never formatted.
	}
	if !errors.As(err, &ended) || ended.ExitCode() != 2 { // 2: nothing was found on it.
		return fmt.Errorf("blkid --probe %s: %w", device, err)
	}
	if filesystem == "ext4" {
		// Nothing is left to be written later, so that an idle volume stays as it is.
		return run("mkfs.ext4", "-q", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0", device)
	}
	return run("mkfs."+filesystem, device)
}

func isMounted(path string) bool {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return false
	}
	for line := range bytes.Lines(table) {
		if fields := strings.Fields(string(line)); len(fields) > 4 && fields[4] == path {
			return true
		}
	}
	return false
}

func unmount(path string) error {
	for isMounted(path) {
		if err := unix.Unmount(path, 0); err != nil {
			return fmt.Errorf("unmounting %s: %w", path, err)
		}
	}
	return nil
}

func run(program string, arguments ...string) error {
	said, err := exec.Command(program, arguments...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", program, strings.Join(arguments, " "), err, bytes.TrimSpace(said))
	}
	return nil
}
