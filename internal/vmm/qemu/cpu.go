//go:build linux && amd64

package qemu

import "github.com/hatchvm/hatch/internal/host/kvm"

// cpuForGuests describes what a running guest relies on of the host's processor.
// Under KVM that is all its features; under TCG its model, which determines the
// frequency of the time stamp counter.
func cpuForGuests(cpu kvm.CPU, accel acceleration) string {
	if accel.name == AccelKVM {
		return cpu.String()
	}
	return cpu.Model
}
