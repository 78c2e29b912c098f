package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
	"github.com/hatchvm/hatch/test/sandbox"
)

const (
	asleepVMs   = 200
	asleepMem   = 128 // MiB of each
	asleepWakes = 20  // n
	asleepLimit = 30 * time.Minute
)

// measureAsleep puts many VMs to sleep, and then measures hatchd's memory, lists them and
// wakes some.
func measureAsleep(out io.Writer, d *sandbox.Daemon) error {
	ctx, cancel := context.WithTimeout(context.Background(), asleepLimit)
	defer cancel()
	c, err := withMinimal(ctx, d)
	if err != nil {
		return err
	}
	if err := warm(ctx, c, asleepMem); err != nil {
		return err
	}
	before, err := residentOf(d.PID())
	if err != nil {
		return err
	}
	began := time.Now()
	ids, err := makeAsleep(ctx, c)
	if err != nil {
		return err
	}
	made := time.Since(began)
	after, err := residentOf(d.PID())
	if err != nil {
		return err
	}
	lists, _, err := list(d, "?limit=1000")
	if err != nil {
		return err
	}
	var wakes, commands sample
	for i := range asleepWakes {
		id := ids[i*len(ids)/asleepWakes]
		began := time.Now()
		if _, err := c.WakeVM(ctx, id); err != nil {
			return err
		}
		wakes = append(wakes, time.Since(began))
		if err := runTrue(ctx, c, id); err != nil {
			return err
		}
		commands = append(commands, time.Since(began))
	}
	fmt.Fprintf(out, "\n%d VMs of the minimal image asleep, %d MiB each, on disk (made in %.1f s)\n", len(ids), asleepMem, made.Seconds())
	fmt.Fprintf(out, "  RSS of hatchd, before and with them      %d MiB, %d MiB\n", before>>10, after>>10)
	fmt.Fprintf(out, "  GET /vms?limit=1000                      %s\n", lists.tail())
	fmt.Fprintf(out, "  wake from disk, until the response       %s\n", wakes.tail())
	fmt.Fprintf(out, "  wake from disk, until a command was run  %s\n", commands.tail())
	for _, id := range ids {
		if err := c.DeleteVM(ctx, id); err != nil {
			return err
		}
	}
	return nil
}

// makeAsleep makes clones of the warm guest, and puts each to sleep, on disk.
func makeAsleep(ctx context.Context, c *client.Client) ([]string, error) {
	ids := make([]string, asleepVMs)
	all, ctx := errgroup.WithContext(ctx)
	all.SetLimit(4)
	for i := range ids {
		all.Go(func() error {
			v, err := c.CreateVM(ctx, api.CreateVM{MachineSpec: api.MachineSpec{ImageID: benchImage, MemMiB: new(asleepMem), DiskMiB: new(benchDisk)}}, client.CreateOptions{Wait: "ready"})
			if err == nil {
				_, err = c.SleepVMDurably(ctx, v.ID)
			}
			ids[i] = v.ID
			return err
		})
	}
	return ids, all.Wait()
}

// residentOf returns the resident memory of a process in KiB.
func residentOf(pid int) (int64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(status), "VmRSS:")
	kib, _, _ := strings.Cut(rest, " kB")
	return strconv.ParseInt(strings.TrimSpace(kib), 10, 64)
}
