package main

import (
	"context"
	"flag"
	"fmt"
	"os"

	"github.com/kubernetes-csi/external-snapshot-metadata/pkg/iterator"
	"k8s.io/client-go/tools/clientcmd"
)

// changedBlocks asks the snapshot metadata service as a backup program does, and prints one range per line (offset and
// size in bytes): what is allocated in a snapshot, or what changed in it since another.
//
//	changed-blocks [-n NAMESPACE] [-account NAME] SNAPSHOT [BASE]
func changedBlocks() error {
	namespace := flag.String("n", "default", "namespace of the snapshots and of the account")
	account := flag.String("account", "default", "service account whose rights are used")
	flag.Parse()
	if flag.NArg() != 1 && flag.NArg() != 2 {
		return fmt.Errorf("name a VolumeSnapshot, and another one to compare it to if you want")
	}
	config, err := clientcmd.BuildConfigFromFlags("", os.Getenv("KUBECONFIG"))
	if err != nil {
		return err
	}
	clients, err := iterator.BuildClients(config)
	if err != nil {
		return err
	}
	return iterator.GetSnapshotMetadata(context.Background(), iterator.Args{
		Clients: clients, Emitter: printer{}, Namespace: *namespace, SnapshotName: flag.Arg(0), PrevSnapshotName: flag.Arg(1),
		SANamespace: *namespace, SAName: *account, TokenExpirySecs: iterator.DefaultTokenExpirySeconds,
	})
}

type printer struct{}

func (printer) SnapshotMetadataIteratorRecord(_ int, record iterator.IteratorMetadata) error {
	for _, block := range record.BlockMetadata {
		fmt.Println(block.ByteOffset, block.SizeBytes)
	}
	return nil
}

func (printer) SnapshotMetadataIteratorDone(int) error { return nil }
