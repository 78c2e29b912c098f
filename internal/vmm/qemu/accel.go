//go:build linux && amd64

package qemu

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/host/kvm"
)

// acceleration is how QEMU executes guest code.
type acceleration struct {
	name   string // AccelKVM or AccelTCG
	why    string
	groups []int // groups that the process needs to open /dev/kvm
}

const kvmHint = "let the driver choose software emulation, or run Hatch where the processor's virtualisation is available"

// chooseAccel returns the acceleration for want, one of the values of Config.Accel.
// group returns the groups with which an unprivileged process may open /dev/kvm.
func chooseAccel(want string, probe func() kvm.Result, group func() (groups []int, err error)) (acceleration, error) {
	switch want {
	case AccelTCG:
		return acceleration{name: AccelTCG, why: "software emulation is configured"}, nil
	case AccelKVM, AccelAuto, "":
	default:
		return acceleration{}, errs.New(errs.Invalid, "invalid_accel", "%q is not an acceleration: want auto, kvm or tcg", want)
	}
	found := probe()
	why := found.Why
	if found.Usable {
		groups, err := group()
		if err == nil {
			return acceleration{name: AccelKVM, why: why, groups: groups}, nil
		}
		why = err.Error()
	}
	if want == AccelKVM {
		return acceleration{}, errs.New(errs.Unsupported, "kvm_unusable", "KVM cannot be used: %s", why).WithHint(kvmHint)
	}
	return acceleration{name: AccelTCG, why: why + "; guests run in software emulation"}, nil
}

// deviceGroup returns the group that an unprivileged process needs to open
// /dev/kvm; none if every user may open it.
func deviceGroup() ([]int, error) {
	var st unix.Stat_t
	if err := unix.Stat(kvm.Device, &st); err != nil {
		return nil, fmt.Errorf("cannot stat %s: %w", kvm.Device, err)
	}
	const groupRW, otherRW = 0o060, 0o006
	switch {
	case st.Mode&otherRW == otherRW:
		return nil, nil
	case st.Mode&groupRW == groupRW:
		return []int{int(st.Gid)}, nil
	}
	return nil, fmt.Errorf("only root may open %s; chgrp kvm %s && chmod 660 %s lets VMM processes use it", kvm.Device, kvm.Device, kvm.Device)
}
