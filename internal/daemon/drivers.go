package daemon

import (
	"context"
	"errors"
	"log/slog"
	"os/exec"
	"path/filepath"
	"slices"

	"github.com/hatchvm/hatch/internal/config"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/vmm"
	"github.com/hatchvm/hatch/internal/vmm/firecracker"
	"github.com/hatchvm/hatch/internal/vmm/qemu"
)

// makeDrivers returns the drivers that can be used here, the one of VMs that do
// not choose first: the one that HATCH_VMM insists on, or with auto Firecracker
// where it and hardware KVM are there, and QEMU elsewhere. The other one is for
// VMs that choose it, or run on it already. anyKVM lets in a Firecracker whose
// KVM only emulates, too.
func makeDrivers(ctx context.Context, cfg config.Config, anyKVM bool, log *slog.Logger) ([]vmm.Driver, error) {
	makers := []func() (vmm.Driver, error){
		func() (vmm.Driver, error) { return newFirecracker(ctx, cfg, anyKVM, log) },
		func() (vmm.Driver, error) { return newQEMU(ctx, cfg, log) },
	}
	if cfg.VMM == qemu.Name {
		slices.Reverse(makers)
	}
	var drivers []vmm.Driver
	var fault error
	for i, maker := range makers {
		d, err := maker()
		switch {
		case err == nil:
			drivers = append(drivers, d)
		case !errs.Is(err, errs.Unsupported), i == 0 && cfg.VMM != "auto":
			return nil, err
		default:
			log.Info("a driver cannot be used", "why", err)
			fault = err
		}
	}
	if len(drivers) == 0 {
		return nil, fault // of QEMU, which needs least
	}
	return drivers, nil
}

func newQEMU(ctx context.Context, cfg config.Config, log *slog.Logger) (vmm.Driver, error) {
	return asDriver(qemu.New(ctx, qemu.Config{Binary: cfg.QEMUBin, Log: log}))
}

func newFirecracker(ctx context.Context, cfg config.Config, anyKVM bool, log *slog.Logger) (vmm.Driver, error) {
	return asDriver(firecracker.New(ctx, firecracker.Config{
		Binary: cfg.FirecrackerBin, Jailer: cfg.JailerBin, Kernels: filepath.Join(cfg.DataDir, "kernels"),
		AnyKVM: anyKVM, Log: log,
	}))
}

// asDriver keeps a nil of a driver's own type from being taken for a driver.
func asDriver[D vmm.Driver](d D, err error) (vmm.Driver, error) {
	if err != nil {
		return nil, err
	}
	return d, nil
}

// checkPrograms reports whether the programs of the drivers are still there.
func checkPrograms(cfg config.Config, drivers []vmm.Driver) error {
	programs := map[string][]string{qemu.Name: {cfg.QEMUBin}, firecracker.Name: {cfg.FirecrackerBin, cfg.JailerBin}}
	var faults []error
	for _, d := range drivers {
		for _, program := range programs[d.Info().Name] {
			_, err := exec.LookPath(program)
			faults = append(faults, err)
		}
	}
	return errors.Join(faults...)
}
