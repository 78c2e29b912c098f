package main

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
	"github.com/hatchvm/hatch/test/sandbox"
)

// trialSizes are the guests' memory in MiB.
var trialSizes = []int{256, 2048}

// trial is a running VM of the minimal image, and beside it a bare QEMU that has
// booted a copy of it.
type trial struct {
	c    *client.Client
	mem  int    // in MiB
	vm   string // the VM's id
	qemu *sleeper
}

// measurement is what is measured in a trial.
type measurement interface {
	measure(ctx context.Context, t trial) error
	print(out io.Writer, mem int)
}

// eachSize builds the minimal image, and measures and prints in a trial of each of
// trialSizes.
func eachSize(out io.Writer, d *sandbox.Daemon, empty func() measurement) error {
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Minute)
	defer cancel()
	c, err := withMinimal(ctx, d)
	if err != nil {
		return err
	}
	for _, mem := range trialSizes {
		m := empty()
		if err := withTrial(ctx, c, d.DataDir, mem, m.measure); err != nil {
			return err
		}
		m.print(out, mem)
	}
	return nil
}

// withTrial makes a trial for measure, and ends it.
func withTrial(ctx context.Context, c *client.Client, dataDir string, mem int, measure func(context.Context, trial) error) error {
	v, machine, err := runMinimal(ctx, c, dataDir, mem)
	if err != nil {
		return err
	}
	defer func() { _ = machine.close() }() // files of a temporary directory
	qemu := &sleeper{bare: machine}
	defer qemu.kill()
	if err := qemu.boot(ctx); err != nil {
		return err
	}
	return errors.Join(measure(ctx, trial{c: c, mem: mem, vm: v.ID, qemu: qemu}), c.DeleteVM(ctx, v.ID))
}

// withMinimal builds the minimal image, and returns the client.
func withMinimal(ctx context.Context, d *sandbox.Daemon) (*client.Client, error) {
	c, err := d.Client()
	if err != nil {
		return nil, err
	}
	_, err = d.BuildImage(ctx, c, "minimal")
	return c, err
}

// runMinimal makes a VM of the minimal image, and a bare copy of it, which the caller
// closes.
func runMinimal(ctx context.Context, c *client.Client, dataDir string, mem int) (api.VM, *bare, error) {
	image, err := c.GetImage(ctx, benchImage)
	if err != nil {
		return api.VM{}, nil, err
	}
	v, err := c.CreateVM(ctx, api.CreateVM{MachineSpec: api.MachineSpec{ImageID: benchImage, MemMiB: new(mem), DiskMiB: new(benchDisk)}}, client.CreateOptions{Wait: "ready"})
	if err != nil {
		return api.VM{}, nil, err
	}
	_, machine, err := copyVM(dataDir, image, v.ID, benchDisk)
	return v, machine, err
}

// repeat calls round warmUp+n times. reset is called after the first warmUp, which
// do not count.
func repeat(warmUp, n int, reset func(), round func() error) error {
	for i := range warmUp + n {
		if err := round(); err != nil {
			return err
		}
		if i+1 == warmUp {
			reset()
		}
	}
	return nil
}
