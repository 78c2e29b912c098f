package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
	"github.com/hatchvm/hatch/test/sandbox"
)

const (
	forkRounds = 30 // n, of each
	forkWarmUp = 2  // more rounds, not counted
	forksOfOne = 8  // of one VM at once
)

// forks is what was measured of copies of one size.
type forks struct {
	made    sample // POST fork of a running VM until it answers: the copy is itself
	exec    sample // the same until the first command has been run in the copy
	warm    sample // POST of a VM that begins as a guest kept booted, until a command has been run in it
	bareRun sample // a bare QEMU of the same memory and devices, until a command has been run
	many    sample // POST fork of forksOfOne until a command has been run in each
	pss     []int64
	rss     []int64 // of the copies, in KiB
}

// measureForks copies running guests, through hatchd and by hand.
func measureForks(out io.Writer, d *sandbox.Daemon) error {
	return eachSize(d, func(ctx context.Context, c *client.Client, mem int) error {
		var f forks
		err := f.measure(ctx, c, d.DataDir, mem)
		if err == nil {
			f.print(out, mem)
		}
		return err
	})
}

// measure takes turns: once through hatchd, once by hand.
func (f *forks) measure(ctx context.Context, c *client.Client, dataDir string, mem int) error {
	v, machine, err := runMinimal(ctx, c, dataDir, mem)
	if err != nil {
		return err
	}
	defer func() { _ = machine.close() }() // files of a temporary directory
	hand := &sleeper{bare: machine}
	defer hand.kill()
	if err := hand.boot(ctx); err != nil {
		return err
	}
	if _, err := hand.sleep(); err != nil {
		return err
	}
	if err := keepBooted(ctx, c, mem); err != nil {
		return err
	}
	for round := range forkWarmUp + forkRounds {
		if err := errors.Join(f.round(ctx, c, v.ID), f.create(ctx, c, mem), f.byHand(ctx, hand)); err != nil {
			return err
		}
		if round+1 == forkWarmUp {
			*f = forks{}
		}
	}
	return errors.Join(f.forkMany(ctx, c, v.ID), c.DeleteVM(ctx, v.ID))
}

func (f *forks) round(ctx context.Context, c *client.Client, id string) error {
	began := time.Now()
	copies, err := c.ForkVM(ctx, id, api.ForkVM{})
	if err != nil {
		return err
	}
	f.made = append(f.made, time.Since(began))
	if err := runTrue(ctx, c, copies.VMs[0].ID); err != nil {
		return err
	}
	f.exec = append(f.exec, time.Since(began))
	return c.DeleteVM(ctx, copies.VMs[0].ID)
}

// keepBooted has a guest kept for VMs of the minimal image to begin as.
func keepBooted(ctx context.Context, c *client.Client, mem int) error {
	if _, err := c.WarmImage(ctx, benchImage, api.WarmImage{MemMiB: new(mem), DiskMiB: new(benchDisk)}); err != nil {
		return err
	}
	return sandbox.Poll(patience, func() (bool, error) {
		image, err := c.GetImage(ctx, benchImage)
		return err == nil && slices.ContainsFunc(image.Warm, func(w api.WarmGuest) bool { return w.State == "ready" && w.MemMiB == mem }), err
	})
}

// create makes a VM that begins as that guest.
func (f *forks) create(ctx context.Context, c *client.Client, mem int) error {
	began := time.Now()
	v, err := c.CreateVM(ctx, api.CreateVM{ImageID: benchImage, MemMiB: new(mem), DiskMiB: new(benchDisk)}, client.CreateOptions{})
	if err != nil {
		return err
	}
	if err := runTrue(ctx, c, v.ID); err != nil {
		return err
	}
	f.warm = append(f.warm, time.Since(began))
	return c.DeleteVM(ctx, v.ID)
}

// byHand starts a bare QEMU from what was saved of one, with its memory mapped
// privately, so that the next one can begin from there too.
func (f *forks) byHand(ctx context.Context, hand *sleeper) error {
	shared := slices.Clone(hand.args)
	for i, arg := range hand.args {
		hand.args[i] = strings.Replace(arg, `"share":true`, `"share":false`, 1)
	}
	_, run, err := hand.wake(ctx)
	hand.args = shared
	hand.kill()
	if err != nil {
		return fmt.Errorf("cannot start a bare QEMU from a copy of memory: %w", err)
	}
	f.bareRun = append(f.bareRun, run)
	return nil
}

// forkMany makes several copies at once, and looks at the memory that they take.
func (f *forks) forkMany(ctx context.Context, c *client.Client, id string) error {
	began := time.Now()
	copies, err := c.ForkVM(ctx, id, api.ForkVM{Count: new(forksOfOne)})
	if err != nil {
		return err
	}
	if len(copies.Failed) > 0 {
		return fmt.Errorf("%d of %d copies were not made: %+v", len(copies.Failed), forksOfOne, copies.Failed)
	}
	for _, v := range copies.VMs {
		if err := runTrue(ctx, c, v.ID); err != nil {
			return err
		}
	}
	f.many = append(f.many, time.Since(began))
	for _, v := range copies.VMs {
		if err := f.weigh(v.ID); err != nil {
			return err
		}
	}
	for _, v := range copies.VMs {
		if err := c.DeleteVM(ctx, v.ID); err != nil {
			return err
		}
	}
	return nil
}

func (f *forks) weigh(id string) error {
	vmm, err := findVMM(id)
	if err != nil {
		return err
	}
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(vmm.pid), "smaps_rollup"))
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		kib, _ := strconv.ParseInt(fields[1], 10, 64) // of the first line it is none
		switch fields[0] {
		case "Pss:":
			f.pss = append(f.pss, kib)
		case "Rss:":
			f.rss = append(f.rss, kib)
		}
	}
	return nil
}

func sumMiB(kib []int64) (sum int64) {
	for _, n := range kib {
		sum += n
	}
	return sum >> 10
}

func (f *forks) print(out io.Writer, mem int) {
	fmt.Fprintf(out, "\ncopies of a guest of the minimal image, %d MiB, against a bare QEMU that goes on from the same memory, in turn\n", mem)
	fmt.Fprintf(out, "  fork, until the copy is itself           %s\n", f.made.tail())
	fmt.Fprintf(out, "  fork, until a command was run in it      %s\n", f.exec.tail())
	fmt.Fprintf(out, "    bare QEMU, the memory saved before     %s\n", f.bareRun.tail())
	fmt.Fprintf(out, "  warm create, until a command was run     %s\n", f.warm.tail())
	fmt.Fprintf(out, "    ratios of the medians, fork and create %.2f, %.2f\n",
		float64(f.exec.median())/float64(f.bareRun.median()), float64(f.warm.median())/float64(f.bareRun.median()))
	fmt.Fprintf(out, "  %d forks at once, a command run in each   %s\n", forksOfOne, f.many.tail())
	fmt.Fprintf(out, "    memory of their VMMs                   %d MiB resident, %d MiB in proportion to who shares it\n", sumMiB(f.rss), sumMiB(f.pss))
}
