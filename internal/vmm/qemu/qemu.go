//go:build linux && amd64

// Package qemu is the driver for QEMU's microvm machine, with KVM where a probe of
// the host proves that it works, else with software emulation (TCG).
//
// Each machine is one jailed process (internal/host/jail) that opens no path of a
// machine: its control socket, serial console, agent channel, disks, kernel, memory and
// TAP are passed to it as open files. Its root directory has QEMU and little else. The process outlives the daemon, and a later daemon adopts it.
// The package does not know what runs in the guest.
// Start at [New], then [Driver.Start].
package qemu

import (
	"context"
	"log/slog"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/host/jail"
	"github.com/hatchvm/hatch/internal/host/kvm"
	"github.com/hatchvm/hatch/internal/vmm"
)

// Name is the driver's name in handles and in the API.
const Name = "qemu"

// Values of Config.Accel.
const (
	AccelAuto = "auto" // kvm if the probe proves it, else tcg
	AccelKVM  = "kvm"
	AccelTCG  = "tcg"
)

// Config says how the driver runs QEMU.
type Config struct {
	Binary  string // "" means qemu-system-x86_64 on PATH
	Accel   string // AccelAuto, AccelKVM or AccelTCG; "" means AccelAuto
	Cgroups jail.Cgroups
	Log     *slog.Logger
}

// Driver runs machines with QEMU.
type Driver struct {
	binary  string // absolute, symbolic links resolved: as /proc/PID/exe shows it
	version string
	accel   acceleration
	cpu     string // what guests rely on of the host's processor
	tscKHz  func() uint64
	cgroups jail.Cgroups
	log     *slog.Logger
	notes   jail.Notes // of starts
}

// New checks the host's QEMU and KVM. It also removes cgroups of machines that ended
// while no daemon ran.
//
// Errors: errs.Unsupported when QEMU is missing, too old or does not run in a jail, or
// when cfg demands KVM and it does not work.
func New(ctx context.Context, cfg Config) (*Driver, error) {
	clock := readClock()
	binary, err := findBinary(cfg.Binary)
	if err != nil {
		return nil, err
	}
	version, err := readVersion(ctx, binary)
	if err != nil {
		return nil, err
	}
	accel, err := chooseAccel(cfg.Accel, kvm.Probe, deviceGroup)
	if err != nil {
		return nil, err
	}
	if err := cfg.Cgroups.Sweep(); err != nil {
		return nil, err
	}
	cpu, err := kvm.HostCPU()
	if err != nil {
		return nil, err
	}
	return &Driver{binary: binary, version: version, accel: accel, cpu: cpuForGuests(cpu, accel), tscKHz: clock.kHz(), cgroups: cfg.Cgroups, log: cfg.Log}, nil
}

const (
	defaultBinary = "qemu-system-x86_64"
	installHint   = "install it: apt-get install qemu-system-x86"
)

func findBinary(name string) (string, error) {
	if name == "" {
		name = defaultBinary
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", errs.New(errs.Unsupported, "qemu_missing", "QEMU (%s) is not installed", name).WithHint(installHint)
	}
	if path, err = filepath.Abs(path); err != nil {
		return "", err
	}
	return filepath.EvalSymlinks(path)
}

// minVersion is the oldest QEMU whose microvm machine has all that the driver uses.
var minVersion = [2]int{7, 2}

// readVersion asks QEMU in a jail, in which its libraries must be found.
func readVersion(ctx context.Context, binary string) (string, error) {
	out, err := jail.Try(ctx, binary, "--version")
	if err != nil {
		return "", errs.New(errs.Unsupported, "jail_unusable", "QEMU does not run in a jail on this host").
			WithHint("hatch doctor says what the host lacks").WithCause(err)
	}
	return parseVersion(out)
}

var versionPattern = regexp.MustCompile(`^QEMU emulator version (\d+)\.(\d+)(\.\d+)*`)

func parseVersion(out string) (string, error) {
	found := versionPattern.FindStringSubmatch(out)
	if found == nil {
		return "", errs.New(errs.Unsupported, "qemu_unknown", "cannot find a version in the output of QEMU's --version").WithHint(installHint)
	}
	major, _ := strconv.Atoi(found[1]) // only digits; no release has a number that overflows
	minor, _ := strconv.Atoi(found[2])
	version := strings.TrimPrefix(found[0], "QEMU emulator version ")
	if major < minVersion[0] || major == minVersion[0] && minor < minVersion[1] {
		return "", errs.New(errs.Unsupported, "qemu_too_old", "QEMU %s is too old: %d.%d or newer is needed",
			version, minVersion[0], minVersion[1]).WithHint("upgrade it: apt-get install qemu-system-x86")
	}
	return version, nil
}

// Info implements vmm.Driver.
func (d *Driver) Info() vmm.Info {
	return vmm.Info{
		Name: Name, Version: d.version, Accel: d.accel.name, CPU: d.cpu, Why: d.accel.why,
		Capabilities: capabilities,
	}
}

var capabilities = vmm.Capabilities{Pause: true, PowerButton: true, Save: true, SaveNeedsKernel: true, Base: true, Reboot: true, DiskLimits: true}
