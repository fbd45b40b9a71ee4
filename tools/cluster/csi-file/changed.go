package main

import (
	"fmt"
	"os"
	"unsafe"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
)

// Changed block tracking by the filesystem's own map. Two snapshots of a volume share each block that was not written in
// between, and while both exist a shared block is never overwritten in place: same place on the disk, same bytes.
type metadata struct {
	csi.UnimplementedSnapshotMetadataServer
	store *store
}

const tuplesPerMessage = 1024

type extent struct{ offset, size, place int64 }

func (e extent) end() int64 { return e.offset + e.size }

func (m *metadata) GetMetadataAllocated(request *csi.GetMetadataAllocatedRequest, stream csi.SnapshotMetadata_GetMetadataAllocatedServer) error {
	found, extents, err := m.snapshot(request.SnapshotId)
	if err != nil {
		return err
	}
	return inMessages(merged(extents), found.Size, request.StartingOffset, request.MaxResults, func(tuples []*csi.BlockMetadata) error {
		return stream.Send(&csi.GetMetadataAllocatedResponse{
			BlockMetadataType: csi.BlockMetadataType_VARIABLE_LENGTH, VolumeCapacityBytes: found.Size, BlockMetadata: tuples,
		})
	})
}

func (m *metadata) GetMetadataDelta(request *csi.GetMetadataDeltaRequest, stream csi.SnapshotMetadata_GetMetadataDeltaServer) error {
	base, before, err := m.snapshot(request.BaseSnapshotId)
	if err != nil {
		return err
	}
	target, after, err := m.snapshot(request.TargetSnapshotId)
	if err != nil {
		return err
	}
	if base.Source != target.Source {
		return refused(codes.InvalidArgument, "The snapshots are of two volumes, %q and %q", base.Source, target.Source)
	}
	return inMessages(merged(differences(before, after)), target.Size, request.StartingOffset, request.MaxResults, func(tuples []*csi.BlockMetadata) error {
		return stream.Send(&csi.GetMetadataDeltaResponse{
			BlockMetadataType: csi.BlockMetadataType_VARIABLE_LENGTH, VolumeCapacityBytes: target.Size, BlockMetadata: tuples,
		})
	})
}

func (m *metadata) snapshot(id string) (*about, []extent, error) {
	found, err := m.store.find(snapshots, id)
	if err != nil {
		return nil, nil, err
	}
	if found == nil {
		return nil, nil, refused(codes.NotFound, "There is no snapshot %q", id)
	}
	extents, err := extentsOf(m.store.disk(snapshots, id))
	return found, extents, err
}

// differences answers what is not in the same place in both: written, newly allocated or given back.
func differences(before, after []extent) (changed []extent) {
	for len(before) > 0 || len(after) > 0 {
		switch {
		case len(before) == 0 || (len(after) > 0 && after[0].end() <= before[0].offset):
			changed, after = append(changed, after[0]), after[1:]
		case len(after) == 0 || before[0].end() <= after[0].offset:
			changed, before = append(changed, before[0]), before[1:]
		case before[0].offset < after[0].offset:
			head := after[0].offset - before[0].offset
			changed, before = append(changed, before[0].head(head)), cut(before, head)
		case after[0].offset < before[0].offset:
			head := before[0].offset - after[0].offset
			changed, after = append(changed, after[0].head(head)), cut(after, head)
		default: // Both begin here.
			size := min(before[0].size, after[0].size)
			if before[0].place != after[0].place {
				changed = append(changed, after[0].head(size))
			}
			before, after = cut(before, size), cut(after, size)
		}
	}
	return changed
}

func (e extent) head(size int64) extent { return extent{e.offset, size, e.place} }

// cut takes the first bytes of the first extent away.
func cut(extents []extent, size int64) []extent {
	first := extents[0]
	if size == first.size {
		return extents[1:]
	}
	extents[0] = extent{first.offset + size, first.size - size, first.place + size}
	return extents
}

func merged(extents []extent) (out []extent) {
	for _, e := range extents {
		if last := len(out) - 1; last >= 0 && out[last].end() == e.offset {
			out[last].size += e.size
		} else {
			out = append(out, e)
		}
	}
	return out
}

func inMessages(extents []extent, size, from int64, most int32, send func([]*csi.BlockMetadata) error) error {
	if from < 0 || from >= size {
		return refused(codes.OutOfRange, "Offset %d is outside of the volume's %d bytes", from, size)
	}
	if most <= 0 || most > tuplesPerMessage {
		most = tuplesPerMessage
	}
	var tuples []*csi.BlockMetadata
	for _, e := range extents {
		end := min(e.end(), size)
		if end <= from || e.offset >= size {
			continue
		}
		tuples = append(tuples, &csi.BlockMetadata{ByteOffset: e.offset, SizeBytes: end - e.offset})
		if len(tuples) == int(most) {
			if err := send(tuples); err != nil {
				return err
			}
			tuples = nil
		}
	}
	if tuples == nil {
		return nil
	}
	return send(tuples)
}

// The kernel's struct fiemap and fiemap_extent (linux/fiemap.h).
type fiemap struct {
	start, length                 uint64
	flags, mapped, count, padding uint32
	extents                       [512]fiemapExtent
}

type fiemapExtent struct {
	logical, physical, length uint64
	_                         [2]uint64
	flags                     uint32
	_                         [3]uint32
}

const (
	fsIocFiemap      = 0xc020660b // _IOWR('f', 11, struct fiemap)
	fiemapSync       = 0x1
	fiemapLast       = 0x1
	fiemapUnknown    = 0x2 // no place, or none that can be compared
	fiemapDelayed    = 0x4
	fiemapEncoded    = 0x8
	fiemapNotAligned = 0x100
	fiemapInline     = 0x200
	fiemapTail       = 0x400
	fiemapUnwritten  = 0x800 // allocated, reads as zeros
	fiemapPlaceless  = fiemapUnknown | fiemapDelayed | fiemapEncoded | fiemapNotAligned | fiemapInline | fiemapTail
)

func extentsOf(path string) (extents []extent, err error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	ask := &fiemap{flags: fiemapSync}
	for {
		ask.length, ask.count = ^uint64(0)-ask.start, uint32(len(ask.extents))
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, file.Fd(), fsIocFiemap, uintptr(unsafe.Pointer(ask))); errno != 0 {
			return nil, fmt.Errorf("the map of %s: %w", path, errno)
		}
		for _, e := range ask.extents[:ask.mapped] {
			if e.flags&fiemapPlaceless != 0 {
				return nil, fmt.Errorf("%s has an extent at %d without a fixed place (flags %#x)", path, e.logical, e.flags)
			}
			if e.flags&fiemapUnwritten == 0 {
				extents = append(extents, extent{int64(e.logical), int64(e.length), int64(e.physical)})
			}
			ask.start = e.logical + e.length
			if e.flags&fiemapLast != 0 {
				return extents, nil
			}
		}
		if ask.mapped == 0 {
			return extents, nil
		}
	}
}
