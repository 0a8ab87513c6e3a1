// cni-gc NETWORK [CONTAINERID IFNAME]... is what cnitool has no arguments for: a garbage collection through libcni that says which
// attachments are valid. CNI_PATH and NETCONFPATH are cnitool's.
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
)

func collect(network string, valid []string) error {
	list, err := libcni.LoadNetworkConf(os.Getenv("NETCONFPATH"), network)
	if err != nil {
		return err
	}
	args := &libcni.GCArgs{}
	for ; len(valid) >= 2; valid = valid[2:] {
		args.ValidAttachments = append(args.ValidAttachments, types.GCAttachment{ContainerID: valid[0], IfName: valid[1]})
	}
	return libcni.NewCNIConfig(filepath.SplitList(os.Getenv("CNI_PATH")), nil).GCNetworkList(context.Background(), list, args)
}

func main() {
	if len(os.Args)%2 != 0 {
		fmt.Fprintln(os.Stderr, "Usage: cni-gc NETWORK [CONTAINERID IFNAME]...")
		os.Exit(2)
	}
	if err := collect(os.Args[1], os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
