//go:build linux && amd64

package kvm

import (
	"strings"
	"testing"
	"unsafe"
)

func TestStructuresHaveTheKernelsSizes(t *testing.T) {
	for name, size := range map[string][2]uintptr{
		"kvm_userspace_memory_region": {unsafe.Sizeof(memoryRegion{}), 32},
		"kvm_regs":                    {unsafe.Sizeof(generalRegisters{}), 144},
		"kvm_sregs":                   {unsafe.Sizeof(specialRegisters{}), 312},
	} {
		if size[0] != size[1] {
			t.Errorf("%s has %d bytes, want %d", name, size[0], size[1])
		}
	}
}

func TestOnlyThePortWriteProvesHardware(t *testing.T) {
	for _, c := range []struct {
		name     string
		exit     guestExit
		usable   bool
		emulates bool
		why      string
	}{
		{"hardware", guestExit{reason: exitIO, port: portNumber}, true, false, "processor's virtualisation"},
		{"emulation", guestExit{reason: exitInternalError, suberror: suberrorEmulation}, false, true, "only emulates"},
		{"another port", guestExit{reason: exitIO, port: 1}, false, false, "exit reason 2"},
		{"failed entry", guestExit{reason: 9}, false, false, "exit reason 9"},
	} {
		if got := judge(c.exit); got.Usable != c.usable || got.Emulates != c.emulates || !strings.Contains(got.Why, c.why) {
			t.Errorf("%s: %+v", c.name, got)
		}
	}
}

// TestProbeAlwaysExplains runs on every host, with or without KVM.
func TestProbeAlwaysExplains(t *testing.T) {
	got := Probe()
	t.Logf("%+v", got)
	if !strings.Contains(got.Why, Device) {
		t.Errorf("%+v does not name the device", got)
	}
}

func BenchmarkProbe(b *testing.B) {
	for b.Loop() {
		Probe()
	}
}
