package vmm

import (
	"fmt"

	"github.com/hatchvm/hatch/internal/errs"
)

// Capabilities is what differs between drivers.
type Capabilities struct {
	Pause           bool // Pause and Resume work
	PowerButton     bool // PowerButton reaches the guest
	Save            bool // Save and Wake work
	SaveNeedsKernel bool // Save works only once the guest's kernel is up
	Base            bool // machines woken from one Base share its unchanged pages; else each has a copy in its Memory
	Reboot          bool // a guest that reboots keeps its machine; else the machine ends with ExitReset

	DiskLimits, NetworkLimits bool // these Spec.Limits are enforced; else a spec with such limits is refused

	MaxVCPUs  int  // of one machine; 0: no limit
	EvenVCPUs bool // more than one must be an even number
}

// Limits returns an error if the driver cannot enforce the rate limits. Errors:
// errs.Unsupported, with the field's name in requests.
func (c Capabilities) Limits(driver string, l RateLimits) error {
	field, what := "", ""
	switch {
	case !c.DiskLimits && l.Disk != DiskLimit{}:
		field, what = "rate_limits.disk", "disks"
	case !c.NetworkLimits && l.NetworkIn != NetworkLimit{}:
		field, what = "rate_limits.network_in", "network"
	case !c.NetworkLimits && l.NetworkOut != NetworkLimit{}:
		field, what = "rate_limits.network_out", "network"
	default:
		return nil
	}
	return errs.New(errs.Unsupported, "rate_limits_unsupported", "%s: %s cannot limit the %s of a VM", field, driver, what).
		WithField(field).WithHint("leave it out, or run the VM with another vmm: Firecracker can, where KVM works")
}

// VCPUs returns an error if the driver cannot run a machine with n CPUs. Errors:
// errs.Unsupported, with the field's name in requests.
func (c Capabilities) VCPUs(driver string, n int) error {
	tooMany := c.MaxVCPUs != 0 && n > c.MaxVCPUs
	odd := c.EvenVCPUs && n > 1 && n%2 != 0
	if !tooMany && !odd {
		return nil
	}
	can := "1 CPU or more"
	if c.EvenVCPUs {
		can = "1 CPU or an even number"
	}
	if c.MaxVCPUs != 0 {
		can += fmt.Sprintf(" of up to %d", c.MaxVCPUs)
	}
	return errs.New(errs.Unsupported, "vcpus_unsupported", "vcpu_count: %s runs %s, not %d", driver, can, n).
		WithField("vcpu_count").WithHint("give the VM another number of CPUs, or another vmm")
}
