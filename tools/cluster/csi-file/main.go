// The program csi-file is a CSI driver for one node: volumes are files on a filesystem that shares blocks (XFS, Btrfs).
//
// It stands where a storage system stands in a real cluster, and does what the good ones do: snapshots are atomic and
// take no copy (FICLONE under the inode's lock), a volume restored from one is written at once, a snapshot of a
// filesystem volume can be read as a block device, and what changed between two snapshots is told exactly (the extents
// that they do not share). It keeps its state in the names of directories, so it can be killed at any time.
package main

import (
	"context"
	"flag"
	"log"
	"net"
	"os"
	"path/filepath"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

const (
	driverName   = "file.csi.tidemark.dev"
	topologyNode = "topology." + driverName + "/node"
)

func main() {
	root := flag.String("root", "", "directory on XFS or Btrfs for volumes and snapshots")
	node := flag.String("node", "", "name of the node")
	kubelet := flag.String("kubelet", "/var/lib/kubelet", "root directory of the kubelet")
	flag.Parse()
	store, err := openStore(*root)
	if err != nil {
		log.Fatal(err)
	}
	socket := filepath.Join(*kubelet, "plugins", driverName, "csi.sock")
	registrar := filepath.Join(*kubelet, "plugins_registry", driverName+"-reg.sock")

	plugin := grpc.NewServer(grpc.UnaryInterceptor(logged))
	csi.RegisterIdentityServer(plugin, identity{})
	csi.RegisterControllerServer(plugin, &controller{store: store, node: *node})
	csi.RegisterNodeServer(plugin, &nodeServer{store: store, node: *node})
	csi.RegisterSnapshotMetadataServer(plugin, &metadata{store: store})
	kubeletSide := grpc.NewServer()
	registration.RegisterRegistrationServer(kubeletSide, registrationServer{endpoint: socket})

	ended := make(chan error)
	go func() { ended <- serve(plugin, socket) }()
	go func() { ended <- serve(kubeletSide, registrar) }()
	log.Fatal(<-ended)
}

func serve(server *grpc.Server, socket string) error {
	if err := os.MkdirAll(filepath.Dir(socket), 0o750); err != nil {
		return err
	}
	if err := os.Remove(socket); err != nil && !os.IsNotExist(err) { // Left by a process that was killed.
		return err
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	return server.Serve(listener)
}

// Every call and its end: the log of this driver is read when a test of the operator fails.
func logged(ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	answer, err := handler(ctx, request)
	if info.FullMethod != csi.Identity_Probe_FullMethodName {
		log.Printf("%s {%v} -> {%v} %v", info.FullMethod, request, answer, err)
	}
	return answer, err
}

type identity struct {
	csi.UnimplementedIdentityServer
}

func (identity) GetPluginInfo(context.Context, *csi.GetPluginInfoRequest) (*csi.GetPluginInfoResponse, error) {
	return &csi.GetPluginInfoResponse{Name: driverName, VendorVersion: "1"}, nil
}

func (identity) Probe(context.Context, *csi.ProbeRequest) (*csi.ProbeResponse, error) {
	return &csi.ProbeResponse{}, nil
}

func (identity) GetPluginCapabilities(context.Context, *csi.GetPluginCapabilitiesRequest) (*csi.GetPluginCapabilitiesResponse, error) {
	answer := &csi.GetPluginCapabilitiesResponse{}
	for _, service := range []csi.PluginCapability_Service_Type{
		csi.PluginCapability_Service_CONTROLLER_SERVICE,
		csi.PluginCapability_Service_VOLUME_ACCESSIBILITY_CONSTRAINTS,
		csi.PluginCapability_Service_SNAPSHOT_METADATA_SERVICE,
	} {
		answer.Capabilities = append(answer.Capabilities, &csi.PluginCapability{
			Type: &csi.PluginCapability_Service_{Service: &csi.PluginCapability_Service{Type: service}},
		})
	}
	return answer, nil
}

// What node-driver-registrar does in other drivers: tells the kubelet where the driver listens.
type registrationServer struct {
	registration.UnimplementedRegistrationServer
	endpoint string
}

func (s registrationServer) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return &registration.PluginInfo{
		Type: registration.CSIPlugin, Name: driverName, Endpoint: s.endpoint, SupportedVersions: []string{"1.0.0"},
	}, nil
}

func (registrationServer) NotifyRegistrationStatus(_ context.Context, told *registration.RegistrationStatus) (*registration.RegistrationStatusResponse, error) {
	if !told.PluginRegistered {
		log.Fatalf("The kubelet did not register the driver: %s", told.Error) // We are started again, and try again.
	}
	return &registration.RegistrationStatusResponse{}, nil
}

func refused(code codes.Code, format string, args ...any) error {
	return status.Errorf(code, format, args...)
}
