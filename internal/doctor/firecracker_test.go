package doctor

import (
	"context"
	"strings"
	"testing"

	"github.com/hatchvm/hatch/internal/host/kvm"
)

func TestFirecrackerIsUsedWhereItCanBe(t *testing.T) {
	says := func(version string) func(*System) {
		return func(s *System) {
			s.Command = func(context.Context, string, ...string) (string, error) { return "Firecracker " + version + "\n", nil }
		}
	}
	emulates := func(s *System) {
		s.ProbeKVM = func() kvm.Result { return kvm.Result{Emulates: true, Why: "it only emulates"} }
	}
	none := func(s *System) { s.ProbeKVM = func() kvm.Result { return kvm.Result{Why: "there is none"} } }
	for name, c := range map[string]struct {
		driver  string
		change  func(*System)
		status  Status
		message string
		hint    string
	}{
		"all there":              {"auto", says("v1.15.2"), Pass, "v1.15.2 under its jailer runs VMs, since KVM works here", ""},
		"no KVM":                 {"auto", emulates, Pass, "not used, QEMU is: Firecracker needs KVM, and it only emulates", ""},
		"no KVM, but wanted":     {"firecracker", none, Fail, "Firecracker needs KVM, and there is none", "v1.16.2"},
		"emulation, but wanted":  {"firecracker", emulates, Warn, "no Linux boots", ""},
		"no jailer":              {"auto", func(s *System) { s.LookPath = without("jailer") }, Pass, "QEMU is: jailer is not installed", ""},
		"no jailer, but wanted":  {"firecracker", func(s *System) { s.LookPath = without("jailer") }, Fail, "jailer is not installed", ""},
		"too old":                {"firecracker", says("v1.11.0"), Fail, "v1.11.0 is too old", "v1.16.2"},
		"corrupt above 3 GiB":    {"auto", says("v1.14.3"), Warn, "3 GiB", "install Firecracker v1.16.2 and its jailer"},
		"loses vsock":            {"auto", says("v1.16.1"), Warn, "v1.16.1 runs VMs, but cannot put them to sleep", "install Firecracker v1.16.2 and its jailer"},
		"does not lose it":       {"auto", says("v1.16.2"), Pass, "v1.16.2 under its jailer", ""},
		"something else":         {"firecracker", says("one"), Fail, "names no version", ""},
		"QEMU is what is wanted": {"qemu", func(*System) {}, Pass, "not needed", ""},
	} {
		set := settings()
		set.Driver = c.driver
		got := find(t, Run(t.Context(), host(c.change), set), "firecracker")
		if got.Status != c.status || !strings.Contains(got.Message, c.message) || !strings.Contains(got.Hint, c.hint) {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func TestQEMUIsNotNeededWhereFirecrackerRuns(t *testing.T) {
	for driver, want := range map[string]Status{"auto": Pass, "qemu": Fail, "firecracker": Pass} {
		set := settings()
		set.Driver = driver
		sys := host(func(s *System) { s.LookPath = without("qemu-system-x86_64") })
		if got := find(t, Run(t.Context(), sys, set), "qemu"); got.Status != want {
			t.Errorf("%s: %+v", driver, got)
		}
	}
}
