//go:build linux && amd64

// Package firecracker is the driver for Firecracker, started by its jailer.
//
// Each machine is one process. The jailer gives it a root directory that has only the
// machine's files (chroot.go), a user, a PID namespace and limits of its own, and no
// capability. The driver uses Firecracker's API on a Unix socket in that directory
// (api.go). The process outlives the daemon, and a later daemon adopts it.
// The package does not know what runs in the guest.
// Start at [New], then [Driver.Start].
package firecracker

import (
	"context"
	"log/slog"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/host/jail"
	"github.com/hatchvm/hatch/internal/host/kvm"
	"github.com/hatchvm/hatch/internal/logkey"
	"github.com/hatchvm/hatch/internal/vmm"
)

// Name is the driver's name in handles and in the API.
const Name = "firecracker"

// accel is Firecracker's only acceleration.
const accel = "kvm"

// AgentPort is the vsock port on which the agent in the guest listens.
const AgentPort = 1024

// Config says how the driver runs Firecracker.
type Config struct {
	Binary  string // "" means firecracker on PATH
	Jailer  string // "" means jailer on PATH
	Kernels string // folder for uncompressed kernels, on the run directories' file system
	Cgroups jail.Cgroups
	Log     *slog.Logger

	// Unjailed runs Firecracker without its jailer, as root without capabilities. It is
	// for debugging only.
	Unjailed bool

	// AnyKVM accepts a /dev/kvm that only emulates, on which Linux does not boot.
	AnyKVM bool
}

// Driver runs machines with Firecracker.
type Driver struct {
	binary   string // absolute, symbolic links resolved
	jailer   string // "" when it runs unjailed
	version  version
	cpu      string // what guests rely on of the host's processor
	why      string
	unjailed bool
	kernels  kernels
	cgroups  jail.Cgroups
	log      *slog.Logger
	notes    jail.Notes // of starts

	mu       sync.Mutex
	starting map[string]bool // run directories of starts in progress
}

// New checks the host's Firecracker, jailer and KVM. It also removes cgroups of
// machines that ended while no daemon ran.
//
// Errors: errs.Unsupported when a program is missing or too old, or when KVM does not
// work.
func New(ctx context.Context, cfg Config) (*Driver, error) {
	d := &Driver{
		unjailed: cfg.Unjailed, cgroups: cfg.Cgroups, log: cfg.Log, starting: map[string]bool{},
		kernels: kernels{dir: cfg.Kernels, digests: map[kernelFileID]string{}},
	}
	var err error
	if d.binary, err = findProgram(cfg.Binary, Name); err != nil {
		return nil, err
	}
	if d.version, err = askVersion(ctx, d.binary); err != nil {
		return nil, err
	}
	if !cfg.Unjailed {
		if d.jailer, err = findProgram(cfg.Jailer, "jailer"); err != nil {
			return nil, err
		}
	}
	found := kvm.Probe()
	if !found.Usable && (!cfg.AnyKVM || !found.Emulates) {
		return nil, errs.New(errs.Unsupported, "kvm_unusable", "Firecracker needs KVM, which cannot be used: %s", found.Why).
			WithHint("use QEMU, which can emulate, or run Hatch where the processor's virtualisation is available")
	}
	d.why = found.Why
	if err := checkSave(d.version); err != nil {
		d.log.Warn("this release of Firecracker has a known bug", logkey.Version, d.version.String(), logkey.Error, err)
	}
	cpu, err := kvm.HostCPU()
	if err != nil {
		return nil, err
	}
	d.cpu = cpu.String()
	return d, d.cgroups.Sweep()
}

func findProgram(name, standard string) (string, error) {
	if name == "" {
		name = standard
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", errs.New(errs.Unsupported, "firecracker_missing", "the program %s is not installed", name).
			WithHint("install Firecracker and its jailer, of the same release, into /usr/local/bin")
	}
	if path, err = filepath.Abs(path); err != nil {
		return "", err
	}
	return filepath.EvalSymlinks(path)
}

func askVersion(ctx context.Context, binary string) (version, error) {
	out, err := exec.CommandContext(ctx, binary, "--version").Output()
	if err != nil {
		return version{}, errs.New(errs.Unsupported, "firecracker_unknown", "cannot get the version of Firecracker").WithCause(err)
	}
	found, ok := strings.CutPrefix(string(out), "Firecracker v")
	if !ok {
		return version{}, errs.New(errs.Unsupported, "firecracker_unknown", "%s is not Firecracker", binary)
	}
	return parseVersion(found)
}

// Info implements vmm.Driver.
func (d *Driver) Info() vmm.Info {
	can := capabilities
	can.Save = checkSave(d.version) == nil
	return vmm.Info{
		Name: Name, Version: d.version.String(), Accel: accel, CPU: d.cpu, Why: d.why,
		Capabilities: can,
	}
}

// capabilities are those of all releases that have no known bug.
var capabilities = vmm.Capabilities{
	Pause: true, PowerButton: true, Save: true, DiskLimits: true, NetworkLimits: true, MaxVCPUs: 32, EvenVCPUs: true,
}
