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

var errGivenUp = errors.New("the server has given up on it")

// warmPoll is the interval of checks whether the guest is ready.
const warmPoll = 200 * time.Millisecond

func (c imageCommands) warmCommand() *cobra.Command {
	var vmm string
	var noWait bool
	cmd := &cobra.Command{
		Use: "warm IMAGE", Short: "Boot a guest for the warm pool, and print the image's id", Args: oneArg("image"),
		Long: `Boot a guest of an image for the warm pool, wait until it is ready and print the
image's id. New VMs with the same CPUs, memory, disk, boot arguments, network and
VMM are cloned from it instead of booted. The boot continues if this command is
interrupted.`,
		Example:           "  hatch image warm debian --memory 1g",
		ValidArgsFunction: imageKind.complete(c.connection),
		RunE: func(cmd *cobra.Command, args []string) error {
			image, err := c.warm(cmd, args[0], vmm, noWait)
			if err != nil {
				return fmt.Errorf("cannot boot a warm guest of %s: %w", args[0], err)
			}
			return c.printLine(image, image.ID)
		},
	}
	addMachineFlags(c.connection, cmd, shapeFlags)
	addVMM(cmd, &vmm)
	cmd.Flags().BoolVar(&noWait, "no-wait", false, "do not wait until it is ready")
	return cmd
}

func (c imageCommands) warm(cmd *cobra.Command, nameOrID, vmm string, noWait bool) (api.Image, error) {
	ctx := cmd.Context()
	server, err := c.client()
	if err != nil {
		return api.Image{}, err
	}
	spec, err := readMachine(c.streams, cmd, server)
	if err != nil {
		return api.Image{}, err
	}
	image, err := imageKind.find(ctx, server, nameOrID)
	if err != nil {
		return api.Image{}, err
	}
	image, err = server.WarmImage(ctx, image.ID, api.WarmImage{
		VCPUCount: spec.VCPUCount, MemMiB: spec.MemMiB, DiskMiB: spec.DiskMiB,
		BootArgs: spec.BootArgs, EnableNetwork: spec.EnableNetwork, VMM: vmm,
	})
	if err != nil || noWait {
		return image, err
	}
	defer c.progress("booting a guest of " + image.ID)()
	return awaitWarm(ctx, server, image)
}

// awaitWarm waits for the requested guest, which is first in the list.
func awaitWarm(ctx context.Context, server *client.Client, image api.Image) (api.Image, error) {
	if len(image.Warm) == 0 {
		return image, errGivenUp
	}
	requested := image.Warm[0]
	tick := time.NewTicker(warmPoll)
	defer tick.Stop()
	for {
		done, err := isWarm(image, requested)
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

// isWarm reports whether the guest is ready. The list may also have an outdated
// one of the same shape.
func isWarm(image api.Image, requested api.WarmGuest) (ready bool, err error) {
	for _, g := range image.Warm {
		switch {
		case shapeOf(g) != shapeOf(requested):
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

// shapeOf returns only the fields of a guest that VMs cloned from it share.
func shapeOf(g api.WarmGuest) api.WarmGuest {
	g.State, g.Reason, g.SizeBytes, g.CreatedAt = "", "", 0, api.Time{}
	return g
}
