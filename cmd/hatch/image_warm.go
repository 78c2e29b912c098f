package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

var errGivenUp = errors.New("the server has given it up")

// warmPoll is how often a guest that boots is looked after.
const warmPoll = 200 * time.Millisecond

func (c *cli) imageWarmCommand() *cobra.Command {
	var f machineFlags
	var vmm string
	var noWait bool
	cmd := &cobra.Command{
		Use: "warm IMAGE", Short: "Keep a guest booted, for new VMs to begin as, and print the image's id", Args: oneArg("image"),
		Long: `Keep a guest of an image booted, for new VMs to begin as, wait until it is ready
and print the image's id. VMs are made from it that are created with the same
CPUs, memory, disk, boot arguments, network and VMM. It is booted in any case
when this command is interrupted.`,
		Example:           "  hatch image warm debian --memory 1g",
		ValidArgsFunction: c.completeImages,
		RunE: func(cmd *cobra.Command, args []string) error {
			f.image = args[0]
			image, err := c.warm(cmd, &f, vmm, noWait)
			if err != nil {
				return fmt.Errorf("cannot keep a guest of %s booted: %w", args[0], err)
			}
			return c.printOne(image, func() { fmt.Fprintln(c.out, image.ID) })
		},
	}
	f.addShape(cmd)
	addVMM(cmd, &vmm)
	cmd.Flags().BoolVar(&noWait, "no-wait", false, "do not wait until it is ready")
	return cmd
}

func (c *cli) warm(cmd *cobra.Command, f *machineFlags, vmm string, noWait bool) (api.Image, error) {
	ctx := cmd.Context()
	server, err := c.client()
	if err != nil {
		return api.Image{}, err
	}
	m, err := f.read(ctx, c, cmd, server)
	if err != nil {
		return api.Image{}, err
	}
	image, err := server.WarmImage(ctx, m.imageID, api.WarmImage{
		VCPUCount: m.vcpus, MemMiB: m.memMiB, DiskMiB: m.diskMiB, BootArgs: m.bootArgs, EnableNetwork: m.network, VMM: vmm,
	})
	if err != nil || noWait {
		return image, err
	}
	defer c.progress("booting a guest of " + image.ID)()
	return awaitWarm(ctx, server, image)
}

// awaitWarm waits for the guest that was asked for, which comes first.
func awaitWarm(ctx context.Context, server *client.Client, image api.Image) (api.Image, error) {
	if len(image.Warm) == 0 {
		return image, errGivenUp
	}
	asked := image.Warm[0]
	tick := time.NewTicker(warmPoll)
	defer tick.Stop()
	for {
		done, err := isWarm(image, asked)
		if err != nil || done {
			return image, err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return image, ctx.Err()
		}
		if image, err = server.GetImage(ctx, image.ID); err != nil {
			return image, err
		}
	}
}

// isWarm reports whether the guest is ready. Beside it there may be one of the
// same shape that is out of date.
func isWarm(image api.Image, asked api.WarmGuest) (ready bool, err error) {
	for _, g := range image.Warm {
		switch {
		case !sameShape(g, asked):
		case g.State == api.WarmFailed:
			return false, errors.New(g.Reason)
		case g.State == api.WarmBuilding:
			return false, nil
		default:
			ready = true
		}
	}
	if !ready {
		return false, errGivenUp
	}
	return true, nil
}

func sameShape(a, b api.WarmGuest) bool {
	return a.VCPUCount == b.VCPUCount && a.MemMiB == b.MemMiB && a.DiskMiB == b.DiskMiB &&
		a.BootArgs == b.BootArgs && a.EnableNetwork == b.EnableNetwork && a.VMM == b.VMM
}
