package transition

import (
	"context"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/vm"
	"github.com/hatchvm/hatch/internal/vmm"
)

// Spec returns what a machine of the VM is started with, but for its TAP; disk
// is the path of the VM's own disk. Errors: errs.Conflict with code
// image_changed or disk_missing; errs.Unsupported with code vmm_unavailable.
func (e *Engine) Spec(ctx context.Context, v vm.VM, disk string) (vmm.Spec, error) {
	if !e.BootFiles.Unchanged(v.Boot) {
		return vmm.Spec{}, errs.New(errs.Conflict, "image_changed",
			"cannot start from image %s: its kernel or root file system was changed or removed since the VM was created", v.ImageID).
			WithHint("put the original file back; VMs on an overlay cannot change their base")
	}
	if _, ok := e.Drivers[v.Driver]; !ok {
		return vmm.Spec{}, vm.NoDriver(v.ID, v.Driver)
	}
	initramfs, err := e.BootFiles.Initramfs(ctx, v.Boot)
	if err != nil {
		return vmm.Spec{}, err
	}
	disks, err := e.Files.Disks(v, disk)
	if err != nil {
		return vmm.Spec{}, err
	}
	spec := vmm.Spec{
		ID: v.ID, Dir: e.Files.Dir(v.ID), VCPUs: v.VCPUs, MemMiB: v.MemMiB,
		Kernel: v.Boot.Kernel.Path, Initramfs: initramfs,
		Cmdline: v.Cmdline(e.Subnet.Gateway, e.Subnet.Prefix.Bits()), Disks: disks,
		UID: e.uid(v), GID: e.uid(v), Limits: e.DriverLimits(v),
		Origin: map[string]string{"kernel": v.Boot.Kernel.Digest, "rootfs": v.Boot.Rootfs.Digest},
	}
	if e.CanSleep(v) {
		spec.Memory = e.Memories.Path(v.ID)
	}
	if v.EnableNetwork {
		spec.NIC = &vmm.NIC{MAC: v.Lease.MAC}
	}
	return spec, nil
}

// startSpec is Spec with the TAP.
func (e *Engine) startSpec(ctx context.Context, r *Run) (vmm.Spec, error) {
	spec, err := e.Spec(ctx, r.VM, e.Files.Disk(r.VM.ID))
	if spec.NIC != nil {
		spec.NIC.TAP = r.tap
	}
	return spec, err
}

// DriverLimits returns the rate limits that the VM's driver enforces. Those of
// the network are enforced at the TAP in any case.
func (e *Engine) DriverLimits(v vm.VM) vmm.RateLimits {
	limits := v.RateLimits
	if !e.Drivers[v.Driver].Info().Capabilities.NetworkLimits {
		limits.NetworkIn, limits.NetworkOut = vmm.NetworkLimit{}, vmm.NetworkLimit{}
	}
	return limits
}

// uid is the user that the VM's VMM runs as; 0 means hatchd's own.
func (e *Engine) uid(v vm.VM) int {
	if e.OwnUser {
		return v.Lease.UID
	}
	return 0
}
