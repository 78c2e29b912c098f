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
	forksOfOne = 8  // of one VM at the same time
)

// forks are the times of clones of one size.
type forks struct {
	made     sample // POST fork of a running VM until its response: the clone has its identity
	exec     sample // POST fork until a command was run in the clone
	warm     sample // POST /vms with a warm snapshot until a command was run
	bareExec sample // a bare QEMU from saved memory until a command was run
	many     sample // POST fork of forksOfOne clones until a command was run in each
	pss      []int64
	rss      []int64 // of the clones' VMMs, in KiB
}

// measureForks clones running guests, and starts a bare QEMU from saved memory.
func measureForks(out io.Writer, d *sandbox.Daemon) error {
	return eachSize(out, d, func() measurement { return &forks{} })
}

// measure alternates between hatchd and a bare QEMU.
func (f *forks) measure(ctx context.Context, t trial) error {
	if _, err := t.qemu.sleep(); err != nil {
		return err
	}
	if err := warm(ctx, t.c, t.mem); err != nil {
		return err
	}
	err := repeat(forkWarmUp, forkRounds, func() { *f = forks{} }, func() error {
		return errors.Join(f.round(ctx, t.c, t.vm), f.create(ctx, t.c, t.mem), f.bareRound(ctx, t.qemu))
	})
	if err != nil {
		return err
	}
	return f.forkMany(ctx, t.c, t.vm)
}

func (f *forks) round(ctx context.Context, c *client.Client, id string) error {
	began := time.Now()
	clones, err := c.ForkVM(ctx, id, api.ForkVM{})
	if err != nil {
		return err
	}
	f.made = append(f.made, time.Since(began))
	if err := runTrue(ctx, c, clones.VMs[0].ID); err != nil {
		return err
	}
	f.exec = append(f.exec, time.Since(began))
	return c.DeleteVM(ctx, clones.VMs[0].ID)
}

// warm makes a warm snapshot of the minimal image.
func warm(ctx context.Context, c *client.Client, mem int) error {
	if _, err := c.WarmImage(ctx, benchImage, api.WarmImage{MemMiB: new(mem), DiskMiB: new(benchDisk)}); err != nil {
		return err
	}
	return sandbox.Poll(benchLimit, func() (bool, error) {
		image, err := c.GetImage(ctx, benchImage)
		return err == nil && slices.ContainsFunc(image.Warm, func(w api.WarmGuest) bool { return w.State == "ready" && w.MemMiB == mem }), err
	})
}

// create makes a VM from the warm snapshot.
func (f *forks) create(ctx context.Context, c *client.Client, mem int) error {
	began := time.Now()
	v, err := c.CreateVM(ctx, api.CreateVM{MachineSpec: api.MachineSpec{ImageID: benchImage, MemMiB: new(mem), DiskMiB: new(benchDisk)}}, client.CreateOptions{})
	if err != nil {
		return err
	}
	if err := runTrue(ctx, c, v.ID); err != nil {
		return err
	}
	f.warm = append(f.warm, time.Since(began))
	return c.DeleteVM(ctx, v.ID)
}

// bareRound starts a bare QEMU from saved state, with its memory mapped privately, so
// that the next round can start from the same.
func (f *forks) bareRound(ctx context.Context, qemu *sleeper) error {
	shared := slices.Clone(qemu.args)
	for i, arg := range qemu.args {
		qemu.args[i] = strings.Replace(arg, `"share":true`, `"share":false`, 1)
	}
	_, exec, err := qemu.wake(ctx)
	qemu.args = shared
	qemu.kill()
	if err != nil {
		return fmt.Errorf("cannot start a bare QEMU from saved memory: %w", err)
	}
	f.bareExec = append(f.bareExec, exec)
	return nil
}

// forkMany makes several clones at once, and reads the memory that they use.
func (f *forks) forkMany(ctx context.Context, c *client.Client, id string) error {
	began := time.Now()
	clones, err := c.ForkVM(ctx, id, api.ForkVM{Count: new(forksOfOne)})
	if err != nil {
		return err
	}
	if len(clones.Failed) > 0 {
		return fmt.Errorf("%d of %d clones have failed: %+v", len(clones.Failed), forksOfOne, clones.Failed)
	}
	for _, v := range clones.VMs {
		if err := runTrue(ctx, c, v.ID); err != nil {
			return err
		}
	}
	f.many = append(f.many, time.Since(began))
	for _, v := range clones.VMs {
		if err := f.addMemory(v.ID); err != nil {
			return err
		}
	}
	for _, v := range clones.VMs {
		if err := c.DeleteVM(ctx, v.ID); err != nil {
			return err
		}
	}
	return nil
}

func (f *forks) addMemory(id string) error {
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
		kib, _ := strconv.ParseInt(fields[1], 10, 64) // the first line has no number
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
	fmt.Fprintf(out, "\nclones of a guest of the minimal image, %d MiB, against a bare QEMU from saved memory, in turn\n", mem)
	fmt.Fprintf(out, "  fork, until the response                 %s\n", f.made.tail())
	fmt.Fprintf(out, "  fork, until a command was run            %s\n", f.exec.tail())
	fmt.Fprintf(out, "    bare QEMU, the memory saved before     %s\n", f.bareExec.tail())
	fmt.Fprintf(out, "  warm create, until a command was run     %s\n", f.warm.tail())
	fmt.Fprintf(out, "    ratios of the medians, fork and create %.2f, %.2f\n",
		ratio(f.exec, f.bareExec), ratio(f.warm, f.bareExec))
	fmt.Fprintf(out, "  %d forks at once, a command run in each   %s\n", forksOfOne, f.many.tail())
	fmt.Fprintf(out, "    memory of their VMMs                   %d MiB resident, %d MiB when shared pages are divided\n", sumMiB(f.rss), sumMiB(f.pss))
}
