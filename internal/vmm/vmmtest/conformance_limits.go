package vmmtest

import (
	"testing"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/vmm"
)

// limitTests are the conformance tests of Spec.Limits.
var limitTests = []conformance{
	{"a disk's limits are enforced, also after a wake, or refused", testDiskLimits},
	{"a guest that was saved without limits is woken with limits", testLimitsOnWake},
	{"limits of the network are refused if the driver cannot enforce them", testNetworkLimits},
}

var diskLimits = vmm.RateLimits{Disk: vmm.DiskLimit{BytesPerSecond: 8 << 20, OpsPerSecond: 5000}}

// limited returns the harness with these limits in its specs.
func (h Harness) limited(l vmm.RateLimits) Harness {
	spec := h.Spec
	h.Spec = func(t *testing.T) vmm.Spec {
		s := spec(t)
		s.Limits = l
		return s
	}
	return h
}

func testDiskLimits(t *testing.T, h Harness) {
	can := h.Driver(t).Info().Capabilities
	if !can.DiskLimits {
		requireLimitsRefused(t, h, diskLimits)
		return
	}
	h = h.limited(diskLimits)
	_, m := boot(t, h)
	requireLimits(t, h, m)
	if can.Save {
		m.closed = true
		requireLimits(t, h, wake(t, h, m.spec, save(t, m, m.spec)))
	}
}

func testLimitsOnWake(t *testing.T, h Harness) {
	can := h.Driver(t).Info().Capabilities
	_, m := boot(t, h)
	requireLimits(t, h, m)
	if !can.DiskLimits || !can.Save {
		return // the driver can set no limits, or cannot wake
	}
	m.closed = true
	dir := save(t, m, m.spec)
	m.spec.Limits = diskLimits
	woken := wake(t, h, m.spec, dir)
	requireLimits(t, h, woken)
	if err := woken.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	woken.console.Say("echo limited")
	woken.console.Expect("echo: limited")
}

func testNetworkLimits(t *testing.T, h Harness) {
	if h.Driver(t).Info().Capabilities.NetworkLimits {
		return // the driver's own tests check them: the suite's guest has no network
	}
	requireLimitsRefused(t, h, vmm.RateLimits{NetworkIn: vmm.NetworkLimit{BytesPerSecond: 1 << 20}})
	requireLimitsRefused(t, h, vmm.RateLimits{NetworkOut: vmm.NetworkLimit{BytesPerSecond: 1 << 20}})
}

// requireLimits checks that the VMM has the limits of the spec.
func requireLimits(t *testing.T, h Harness, m *started) {
	t.Helper()
	if got := h.Limits(t, m.Machine); got != m.spec.Limits {
		t.Errorf("the VMM has the limits %+v, want %+v", got, m.spec.Limits)
	}
}

func requireLimitsRefused(t *testing.T, h Harness, l vmm.RateLimits) {
	t.Helper()
	spec := h.limited(l).Spec(t)
	_, err := h.Driver(t).Start(t.Context(), spec)
	requireRefused(t, err, errs.Unsupported)
	requireNothingLeft(t, h, spec)
}
