package linux

import (
	"context"
	"errors"
	"log/slog"
	"os/exec"
	"path/filepath"
	"slices"

	"github.com/hatchvm/hatch/internal/config"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/host/jail"
	"github.com/hatchvm/hatch/internal/logkey"
	"github.com/hatchvm/hatch/internal/vmm"
	"github.com/hatchvm/hatch/internal/vmm/firecracker"
	"github.com/hatchvm/hatch/internal/vmm/qemu"
)

// makeDrivers returns the drivers that this host can run, the default first: the
// one that HATCH_VMM names, or with auto Firecracker on hosts with hardware KVM
// and Firecracker installed, else QEMU. VMs may choose the other one, or run on
// it already. anyKVM accepts Firecracker on an emulated KVM, too.
func makeDrivers(ctx context.Context, cfg config.Config, anyKVM bool, log *slog.Logger) ([]vmm.Driver, error) {
	makers := []func() (vmm.Driver, error){
		func() (vmm.Driver, error) { return newFirecracker(ctx, cfg, anyKVM, log) },
		func() (vmm.Driver, error) { return newQEMU(ctx, cfg, log) },
	}
	if cfg.VMM == qemu.Name {
		slices.Reverse(makers)
	}
	var drivers []vmm.Driver
	var unusable error
	for i, maker := range makers {
		d, err := maker()
		switch {
		case err == nil:
			drivers = append(drivers, d)
		case !errs.Is(err, errs.Unsupported), i == 0 && cfg.VMM != "auto":
			return nil, err
		default:
			log.Info("cannot use a driver", logkey.Reason, err)
			unusable = err
		}
	}
	if len(drivers) == 0 {
		return nil, unusable // QEMU's, which needs least
	}
	return drivers, nil
}

func newQEMU(ctx context.Context, cfg config.Config, log *slog.Logger) (vmm.Driver, error) {
	return asDriver(qemu.New(ctx, qemu.Config{Binary: cfg.QEMUBin, Cgroups: jail.Cgroups(cfg.Cgroup), Log: log}))
}

func newFirecracker(ctx context.Context, cfg config.Config, anyKVM bool, log *slog.Logger) (vmm.Driver, error) {
	return asDriver(firecracker.New(ctx, firecracker.Config{
		Binary: cfg.FirecrackerBin, Jailer: cfg.JailerBin, Kernels: filepath.Join(cfg.DataDir, "kernels"),
		Cgroups: jail.Cgroups(cfg.Cgroup), AnyKVM: anyKVM, Log: log,
	}))
}

// asDriver returns a nil interface on error, not an interface with a nil pointer.
func asDriver[D vmm.Driver](d D, err error) (vmm.Driver, error) {
	if err != nil {
		return nil, err
	}
	return d, nil
}

// checkPrograms returns an error for each of the drivers' programs that is not installed.
func checkPrograms(cfg config.Config, drivers []vmm.Driver) error {
	programs := map[string][]string{qemu.Name: {cfg.QEMUBin}, firecracker.Name: {cfg.FirecrackerBin, cfg.JailerBin}}
	var missing []error
	for _, d := range drivers {
		for _, program := range programs[d.Info().Name] {
			_, err := exec.LookPath(program)
			missing = append(missing, err)
		}
	}
	return errors.Join(missing...)
}
