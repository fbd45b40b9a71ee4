// The programs of the e2e node, one binary: the name it is called by (a link) decides which one it is.
//
// Linking Kubernetes costs more than compiling what its programs do not share, so they are linked once. What cannot be
// imported because it is a `package main` (Helm, the provisioner, the snapshotters) is a `tool` of go.mod, built from the
// same versions of everything.
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/kubernetes-csi/external-snapshot-metadata/pkg/sidecar"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	kubectl "k8s.io/kubectl/pkg/cmd"
	kubectlutil "k8s.io/kubectl/pkg/cmd/util"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllers "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

func main() {
	switch name := filepath.Base(os.Args[0]); name {
	case "kube-apiserver":
		os.Exit(cli.Run(apiserver.NewAPIServerCommand()))
	case "kube-controller-manager":
		os.Exit(cli.Run(controllers.NewControllerManagerCommand()))
	case "kube-scheduler":
		os.Exit(cli.Run(scheduler.NewSchedulerCommand()))
	case "kubelet":
		os.Exit(cli.Run(kubelet.NewKubeletCommand(context.Background())))
	case "kubectl":
		if err := cli.RunNoErrOutput(kubectl.NewDefaultKubectlCommand()); err != nil {
			kubectlutil.CheckErr(err)
		}
	case "csi-snapshot-metadata":
		os.Exit(sidecar.Run(os.Args, "v1.1.0"))
	case "changed-blocks":
		if err := changedBlocks(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	default:
		fmt.Fprintf(os.Stderr, "Called as %q; call it by a link named kube-apiserver, kube-controller-manager, "+
			"kube-scheduler, kubelet, kubectl, csi-snapshot-metadata or changed-blocks\n", name)
		os.Exit(2)
	}
}
