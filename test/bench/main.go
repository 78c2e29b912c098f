// Command bench measures hatchd and prints numbers; it has no thresholds.
//
// Where a raw VMM can do the same, it does so in the same run, and the ratio is
// printed: creates, deletes, sleeps, wakes, requests to sleeping VMs, snapshots,
// restores and forks against a bare QEMU, commands and files against a bare port of the same guest, sleeps and
// wakes against libvirt where that is installed, and the Firecracker driver against
// a bare Firecracker. It also puts two hundred VMs to sleep, and lists a thousand.
// Arguments name the parts to measure: those of [parts], "lists" and "firecracker";
// the default is all. It runs in a sandbox, and needs root and the kernel of
// `make test-assets`. Start at [measure]; `make bench` runs it.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/hatchvm/hatch/test/sandbox"
)

func main() { os.Exit(sandbox.Run(inside)) }

func inside() int {
	if err := measure(os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		return 1
	}
	return 0
}

// parts are the measurements of a hatchd with real guests, in order.
var parts = []struct {
	name    string
	measure func(io.Writer, *sandbox.Daemon) error
}{
	{"boots", measureBoots},
	{"work", measureWork},
	{"sleeps", measureSleeps},
	{"http", measureHTTP},
	{"asleep", measureAsleep},
	{"snapshots", measureSnapshots},
	{"forks", measureForks},
	{"libvirt", measureLibvirt},
}

// isWanted reports whether the arguments ask for a part.
func isWanted(part string) bool { return len(os.Args) == 1 || slices.Contains(os.Args[1:], part) }

// measure runs the measurements and writes the results to out.
func measure(out io.Writer) (err error) {
	root, err := os.Getwd()
	if err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(root, "bin", "hatchd")); err != nil {
		return fmt.Errorf("run make bench in the repository's root: %w", err)
	}
	dir, err := os.MkdirTemp("", "hatch-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()

	data, err := sandbox.PrivateDir(filepath.Join(root, ".cache", "e2e"))
	if err != nil {
		return err
	}
	real := &sandbox.Daemon{
		Program: filepath.Join(root, "bin", "hatchd"), DataDir: filepath.Join(data, "bench"),
		LogFile: filepath.Join(dir, "hatchd.log"), Port: 8080,
	}
	for _, part := range parts {
		if !isWanted(part.name) {
			continue
		}
		if err := run(real, func() error { return part.measure(out, real) }); err != nil {
			return err
		}
	}
	fake := &sandbox.Daemon{
		Program: real.Program + "-fake", DataDir: filepath.Join(dir, "fake"), LogFile: filepath.Join(dir, "fake.log"), Port: 8081,
		Env: []string{"HATCH_BRIDGE_CIDR=172.20.0.1/16", "HATCH_MEM_OVERCOMMIT=100", "HATCH_DISK_OVERCOMMIT=100"},
	}
	if isWanted("lists") {
		if err := run(fake, func() error { return measureLists(out, fake) }); err != nil {
			return err
		}
	}
	if !isWanted("firecracker") {
		return nil
	}
	return measureFirecracker(out, root, dir)
}

// run calls do while hatchd runs on an empty data directory.
func run(d *sandbox.Daemon, do func() error) error {
	if err := d.Reset(); err != nil {
		return err
	}
	if err := d.Start(); err != nil {
		return err
	}
	err := do()
	if err != nil {
		err = fmt.Errorf("%w\nthe end of hatchd's log:\n%s", err, sandbox.Tail(d.LogFile, 30))
	}
	return errors.Join(err, d.End(syscall.SIGTERM))
}
