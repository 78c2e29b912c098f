// Package boot is the agent's first life, as /init of the initramfs: it loads
// drivers, finds the disks, puts the root together, configures the network as
// the kernel command line says, leaves the agent running, and hands over to
// the image's own init, or stays PID 1 for an image that has none.
//
// It changes nothing of an image but the VM's own layer above it, and speaks
// to no host: that is internal/agent. Start at [Run], whose steps are in order.
package boot

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/agent/uevent"
)

// newRoot is where the guest's root is put together, in the initramfs.
const newRoot = "/newroot"

// Patience with devices: an emulated guest on a busy host is slow.
const (
	diskPatience = 60 * time.Second
	nicPatience  = 10 * time.Second
)

// Run boots the guest. It returns only when it cannot; PID 1 that ends makes
// the kernel panic, which the host notices and tells. agentName is the name of
// the program to leave running: argv[0] of a copy of this one.
func Run(log *slog.Logger, agentName string) error {
	cmdline, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	p, err := parseParams(string(cmdline))
	if err != nil {
		return err
	}
	devices, err := uevent.Listen()
	if err != nil {
		return err
	}
	loadModules(log, "/")
	d, err := findDisks(devices, p.mode, p.disks)
	if err != nil {
		return err
	}
	if err := assemble(log, p, d); err != nil {
		return err
	}
	setUp(log, p, devices)
	_ = devices.Close()
	if err := moveMounts(log); err != nil {
		return err
	}
	agent, err := startAgent(agentName, newRoot)
	if err != nil {
		return err
	}
	if err := switchRoot(); err != nil {
		return err
	}
	attachConsole(log)
	if p.entrypoint == nil {
		handOver(log, p.init) // returns when the image has no init
	}
	return supervise(log, agentName, agent, p.entrypoint)
}

// Mount mounts what a program needs to see the machine at all: /dev, /proc and
// /sys of the initramfs.
func Mount() error {
	var faults []error
	for _, m := range []struct{ kind, target string }{
		{"devtmpfs", "/dev"}, {"proc", "/proc"}, {"sysfs", "/sys"},
	} {
		if err := os.MkdirAll(m.target, 0o755); err != nil {
			faults = append(faults, err)
			continue
		}
		flags := uintptr(unix.MS_NOSUID)
		if m.kind != "devtmpfs" {
			flags |= unix.MS_NOEXEC | unix.MS_NODEV
		}
		if err := unix.Mount(m.kind, m.target, m.kind, flags, ""); err != nil {
			faults = append(faults, fmt.Errorf("cannot mount %s: %w", m.target, err))
		}
	}
	return errors.Join(faults...)
}

// setUp does what a guest can start without: each failure is logged.
func setUp(log *slog.Logger, p params, devices *uevent.Listener) {
	if p.hostname != "" {
		if err := unix.Sethostname([]byte(p.hostname)); err != nil {
			log.Error("cannot set the hostname", "err", err)
		}
	}
	if err := configureNetwork(p.nic, devices); err != nil {
		log.Error("cannot configure the network", "err", err)
	}
	if err := writeFiles(newRoot, p); err != nil {
		log.Error("cannot write into the root", "err", err)
	}
}
