package main

import (
	"context"
	"sync"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"
)

const (
	sizeDefault = 1 << 30
	sizeUnit    = 1 << 20 // sizes are whole MiB
)

// The parameter of a VolumeSnapshotClass that lets a snapshot become ready only later, as many storage systems do.
const readyAfter = "readyAfter"

type controller struct {
	csi.UnimplementedControllerServer
	store *store
	node  string
	lock  sync.Mutex // one change at a time: they take milliseconds
}

func (c *controller) ControllerGetCapabilities(context.Context, *csi.ControllerGetCapabilitiesRequest) (*csi.ControllerGetCapabilitiesResponse, error) {
	answer := &csi.ControllerGetCapabilitiesResponse{}
	for _, can := range []csi.ControllerServiceCapability_RPC_Type{
		csi.ControllerServiceCapability_RPC_CREATE_DELETE_VOLUME,
		csi.ControllerServiceCapability_RPC_CREATE_DELETE_SNAPSHOT,
		csi.ControllerServiceCapability_RPC_LIST_SNAPSHOTS,
		csi.ControllerServiceCapability_RPC_CLONE_VOLUME,
		csi.ControllerServiceCapability_RPC_GET_CAPACITY,
		csi.ControllerServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER,
	} {
		answer.Capabilities = append(answer.Capabilities, &csi.ControllerServiceCapability{
			Type: &csi.ControllerServiceCapability_Rpc{Rpc: &csi.ControllerServiceCapability_RPC{Type: can}},
		})
	}
	return answer, nil
}

func (c *controller) ValidateVolumeCapabilities(_ context.Context, request *csi.ValidateVolumeCapabilitiesRequest) (*csi.ValidateVolumeCapabilitiesResponse, error) {
	found, err := c.store.find(volumes, request.VolumeId)
	if err != nil {
		return nil, err
	}
	if found == nil {
		return nil, refused(codes.NotFound, "There is no volume %q", request.VolumeId)
	}
	return &csi.ValidateVolumeCapabilitiesResponse{
		Confirmed: &csi.ValidateVolumeCapabilitiesResponse_Confirmed{VolumeCapabilities: request.VolumeCapabilities},
	}, nil
}

func (c *controller) GetCapacity(context.Context, *csi.GetCapacityRequest) (*csi.GetCapacityResponse, error) {
	free, err := c.store.free()
	return &csi.GetCapacityResponse{AvailableCapacity: free}, err
}

// source is where a new volume's bytes come from: the file, and what is to be remembered of it.
type source struct {
	file string
	id   string
	size int64
}

func (c *controller) sourceOf(content *csi.VolumeContentSource) (from source, err error) {
	of, id := volumes, content.GetVolume().GetVolumeId()
	if content.GetSnapshot() != nil {
		of, id = snapshots, content.GetSnapshot().SnapshotId
	}
	found, err := c.store.find(of, id)
	if err != nil {
		return from, err
	}
	if found == nil {
		return from, refused(codes.NotFound, "There is no %s %q to fill the volume from", of, id)
	}
	if of == snapshots && time.Now().Before(found.Ready) {
		return from, refused(codes.Unavailable, "Snapshot %q is not ready before %s", id, found.Ready)
	}
	if of == volumes {
		if err := flush(c.store.disk(volumes, id)); err != nil {
			return from, err
		}
	}
	return source{file: c.store.disk(of, id), id: id, size: found.Size}, nil
}

func (c *controller) CreateVolume(_ context.Context, request *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	c.lock.Lock()
	defer c.lock.Unlock()
	if request.Name == "" || len(request.VolumeCapabilities) == 0 {
		return nil, refused(codes.InvalidArgument, "A volume needs a name and capabilities")
	}
	var from source
	var err error
	if request.VolumeContentSource != nil {
		if from, err = c.sourceOf(request.VolumeContentSource); err != nil {
			return nil, err
		}
	}
	required, limit := request.CapacityRange.GetRequiredBytes(), request.CapacityRange.GetLimitBytes()
	size := required
	if size == 0 {
		size = max(sizeDefault, from.size)
	}
	size = (size + sizeUnit - 1) / sizeUnit * sizeUnit
	if size < from.size || (limit > 0 && size > limit) {
		return nil, refused(codes.OutOfRange, "A volume of %d bytes does not fit: its source has %d, its limit is %d", size, from.size, limit)
	}
	id := c.store.id(volumes, request.Name)
	found, err := c.store.find(volumes, id)
	switch {
	case err != nil:
		return nil, err
	case found == nil:
		it := about{Name: request.Name, Size: size, Source: from.id, Created: time.Now()}
		if err := c.store.create(volumes, id, it, from.file); err != nil {
			return nil, err
		}
	case found.Size < required || (limit > 0 && found.Size > limit) || found.Source != from.id:
		return nil, refused(codes.AlreadyExists, "Volume %q exists with %d bytes from %q", request.Name, found.Size, found.Source)
	default:
		size = found.Size
	}
	return &csi.CreateVolumeResponse{Volume: &csi.Volume{
		VolumeId: id, CapacityBytes: size, ContentSource: request.VolumeContentSource,
		AccessibleTopology: []*csi.Topology{{Segments: map[string]string{topologyNode: c.node}}},
	}}, nil
}

func (c *controller) DeleteVolume(_ context.Context, request *csi.DeleteVolumeRequest) (*csi.DeleteVolumeResponse, error) {
	c.lock.Lock()
	defer c.lock.Unlock()
	if request.VolumeId == "" {
		return nil, refused(codes.InvalidArgument, "The volume's id is missing")
	}
	devices, err := devicesOf(c.store.disk(volumes, request.VolumeId))
	if err != nil {
		return nil, err
	}
	if len(devices) > 0 {
		return nil, refused(codes.FailedPrecondition, "Volume %q is in use as %v", request.VolumeId, devices)
	}
	return &csi.DeleteVolumeResponse{}, c.store.remove(volumes, request.VolumeId)
}

func (c *controller) CreateSnapshot(_ context.Context, request *csi.CreateSnapshotRequest) (*csi.CreateSnapshotResponse, error) {
	c.lock.Lock()
	defer c.lock.Unlock()
	if request.Name == "" || request.SourceVolumeId == "" {
		return nil, refused(codes.InvalidArgument, "A snapshot needs a name and a volume")
	}
	id := c.store.id(snapshots, request.Name)
	found, err := c.store.find(snapshots, id)
	if err != nil {
		return nil, err
	}
	if found != nil {
		if found.Source != request.SourceVolumeId {
			return nil, refused(codes.AlreadyExists, "Snapshot %q exists of volume %q", request.Name, found.Source)
		}
		return &csi.CreateSnapshotResponse{Snapshot: snapshotOf(id, found)}, nil
	}
	volume, err := c.store.find(volumes, request.SourceVolumeId)
	if err != nil {
		return nil, err
	}
	if volume == nil {
		return nil, refused(codes.NotFound, "There is no volume %q to take a snapshot of", request.SourceVolumeId)
	}
	var delay time.Duration
	if text := request.Parameters[readyAfter]; text != "" {
		if delay, err = time.ParseDuration(text); err != nil {
			return nil, refused(codes.InvalidArgument, "Parameter %s: %v", readyAfter, err)
		}
	}
	disk := c.store.disk(volumes, request.SourceVolumeId)
	if err := flush(disk); err != nil {
		return nil, err
	}
	now := time.Now()
	it := about{Name: request.Name, Size: volume.Size, Source: request.SourceVolumeId, Created: now, Ready: now.Add(delay)}
	if err := c.store.create(snapshots, id, it, disk); err != nil {
		return nil, err
	}
	return &csi.CreateSnapshotResponse{Snapshot: snapshotOf(id, &it)}, nil
}

func snapshotOf(id string, it *about) *csi.Snapshot {
	return &csi.Snapshot{
		SnapshotId: id, SourceVolumeId: it.Source, SizeBytes: it.Size,
		CreationTime: timestamppb.New(it.Created), ReadyToUse: !time.Now().Before(it.Ready),
	}
}

func (c *controller) DeleteSnapshot(_ context.Context, request *csi.DeleteSnapshotRequest) (*csi.DeleteSnapshotResponse, error) {
	c.lock.Lock()
	defer c.lock.Unlock()
	if request.SnapshotId == "" {
		return nil, refused(codes.InvalidArgument, "The snapshot's id is missing")
	}
	return &csi.DeleteSnapshotResponse{}, c.store.remove(snapshots, request.SnapshotId)
}

func (c *controller) ListSnapshots(_ context.Context, request *csi.ListSnapshotsRequest) (*csi.ListSnapshotsResponse, error) {
	ids := []string{request.SnapshotId}
	var err error
	if request.SnapshotId == "" {
		if ids, err = c.store.list(snapshots); err != nil {
			return nil, err
		}
	}
	answer := &csi.ListSnapshotsResponse{}
	for _, id := range ids {
		found, err := c.store.find(snapshots, id)
		if err != nil {
			return nil, err
		}
		if found == nil || (request.SourceVolumeId != "" && request.SourceVolumeId != found.Source) {
			continue
		}
		answer.Entries = append(answer.Entries, &csi.ListSnapshotsResponse_Entry{Snapshot: snapshotOf(id, found)})
	}
	return answer, nil
}
