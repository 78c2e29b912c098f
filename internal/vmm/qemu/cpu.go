//go:build linux && amd64

package qemu

import "github.com/hatchvm/hatch/internal/host/kvm"

// relied describes the processor as far as a guest comes to rely on it. Under
// KVM that is all its features; under TCG the model, which stands for the pace
// of its counter.
func relied(cpu kvm.CPU, accel acceleration) string {
	if accel.name == AccelKVM {
		return cpu.String()
	}
	return cpu.Model
}
