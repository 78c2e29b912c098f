//go:build linux && amd64

package qemu

import (
	"fmt"
	"os"
	"syscall"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/host/kvm"
)

// acceleration is how guest code is run.
type acceleration struct {
	name   string // AccelKVM or AccelTCG
	why    string
	groups []int // groups that the process needs to open /dev/kvm
}

const kvmHint = "let the driver choose software emulation, or run Hatch where the processor's virtualisation is available"

// chooseAccel decides once, when the driver is made. group says through which
// group an unprivileged process may open the device.
func chooseAccel(want string, probe func() kvm.Result, group func() (groups []int, err error)) (acceleration, error) {
	switch want {
	case AccelTCG:
		return acceleration{name: AccelTCG, why: "software emulation is configured"}, nil
	case AccelKVM, AccelAuto, "":
	default:
		return acceleration{}, errs.New(errs.Invalid, "invalid_accel", "acceleration %q is unknown; auto, kvm and tcg are known", want)
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

// deviceGroup finds out how a process without privileges may open /dev/kvm.
func deviceGroup() ([]int, error) {
	st, err := os.Stat(kvm.Device)
	if err != nil {
		return nil, err
	}
	const groupRW, otherRW = 0o060, 0o006
	switch mode := st.Mode().Perm(); {
	case mode&otherRW == otherRW:
		return nil, nil
	case mode&groupRW == groupRW:
		return []int{int(st.Sys().(*syscall.Stat_t).Gid)}, nil
	}
	return nil, fmt.Errorf("only root may open %s; chgrp kvm %s && chmod 660 %s lets VMM processes use it", kvm.Device, kvm.Device, kvm.Device)
}
