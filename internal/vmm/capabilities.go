package vmm

import (
	"fmt"

	"github.com/hatchvm/hatch/internal/errs"
)

// Capabilities says what differs between drivers.
type Capabilities struct {
	Pause       bool // Pause and Resume work
	PowerButton bool // PowerButton reaches the guest
	Save        bool // Save and Wake work
	Base        bool // machines woken from one Base share what they have not changed of it; without, each has a copy in its Memory
	Reboot      bool // a guest that reboots keeps its machine; without, it ends it with ExitReset

	DiskLimits, NetworkLimits bool // these Spec.Limits are held to; without, a spec that has some is refused

	MaxVCPUs  int  // of one machine; 0: as many as there are
	EvenVCPUs bool // more than one come in pairs only
}

// Limits refuses rate limits that a driver cannot hold a guest to. Errors:
// errs.Unsupported, which name the field as requests have it.
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

// VCPUs refuses a number of CPUs that a driver has no machines with. Errors:
// errs.Unsupported, which name the field as requests have it.
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
