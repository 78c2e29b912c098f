//go:build linux && amd64

package firecracker

import (
	"context"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/vmm"
)

// Save implements vmm.Machine.
func (m *machine) Save(context.Context, vmm.Spec, string) error {
	select {
	case <-m.exited:
		return errGone(m.handle.ID)
	default:
		return errNoSave()
	}
}

// Wake implements vmm.Driver.
func (d *Driver) Wake(_ context.Context, spec vmm.Spec, _ string) (vmm.Machine, error) {
	if spec.NIC != nil {
		_ = spec.NIC.TAP.Close()
	}
	return nil, errNoSave()
}

func errNoSave() error {
	return errs.New(errs.Unsupported, "save_unsupported", "VMs cannot be saved under Firecracker yet").WithHint("use QEMU for VMs that are to sleep")
}
