// Package boot is hatch-agent as /init of the initramfs: it loads drivers, finds the
// disks, assembles the root file system, configures the network from the kernel
// command line, starts the agent, and executes the image's init, or stays PID 1 for an
// image without one.
//
// It writes only to the VM's own disk, not to the image, and does not communicate with
// the host: internal/agent does. Start at [Run].
package boot

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/agent/uevent"
	"github.com/hatchvm/hatch/internal/logkey"
)

// newRoot is where the guest's root is assembled, in the initramfs.
const newRoot = "/newroot"

// Timeouts for devices: an emulated guest on a busy host is slow.
const (
	diskTimeout = 60 * time.Second
	nicTimeout  = 10 * time.Second
)

// Run boots the guest. It returns only an error: when PID 1 ends, the kernel panics,
// and hatchd reports that. agentName is argv[0] with which this program runs again, as
// the agent.
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
	if err := offerCommand(); err != nil { // a guest can do without
		log.Error("programs in the guest cannot start the agent's program", logkey.Error, err)
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

// Mount mounts /dev, /proc and /sys in the initramfs.
func Mount() error {
	var failed []error
	for _, m := range []struct{ kind, target string }{
		{"devtmpfs", "/dev"}, {"proc", "/proc"}, {"sysfs", "/sys"},
	} {
		if err := os.MkdirAll(m.target, 0o755); err != nil {
			failed = append(failed, err)
			continue
		}
		flags := uintptr(unix.MS_NOSUID)
		if m.kind != "devtmpfs" {
			flags |= unix.MS_NOEXEC | unix.MS_NODEV
		}
		if err := unix.Mount(m.kind, m.target, m.kind, flags, ""); err != nil {
			failed = append(failed, fmt.Errorf("cannot mount %s: %w", m.target, err))
		}
	}
	return errors.Join(failed...)
}

// setUp runs the steps that a guest can boot without. It logs their errors.
func setUp(log *slog.Logger, p params, devices *uevent.Listener) {
	if p.hostname != "" {
		if err := unix.Sethostname([]byte(p.hostname)); err != nil {
			log.Error("cannot set the hostname", logkey.Error, err)
		}
	}
	if err := configureNetwork(p.nic, devices); err != nil {
		log.Error("cannot configure the network", logkey.Error, err)
	}
	if err := writeFiles(newRoot, p); err != nil {
		log.Error("cannot write files into the root", logkey.Error, err)
	}
}
