//go:build linux && amd64

package qemu

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/host/jail"
	"github.com/hatchvm/hatch/internal/host/kvm"
	"github.com/hatchvm/hatch/internal/vmm"
)

func TestVersions(t *testing.T) {
	for out, want := range map[string]string{
		"QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright": "7.2.22",
		"QEMU emulator version 10.0.2":                                  "10.0.2",
		"QEMU emulator version 7.1.0":                                   "qemu_too_old",
		"QEMU emulator version 6.9":                                     "qemu_too_old",
		"hello":                                                         "qemu_unknown",
		"":                                                              "qemu_unknown",
	} {
		t.Run(out, func(t *testing.T) {
			got, err := parseVersion(out)
			if err != nil && !errs.HasCode(err, want) || err == nil && got != want {
				t.Errorf("%q: %q, %v; want %s", out, got, err, want)
			}
		})
	}
}

func TestMissingQEMUIsAnErrorWithAHint(t *testing.T) {
	_, err := New(t.Context(), Config{Binary: "no-such-qemu", Log: slog.New(slog.DiscardHandler)})
	var e *errs.Error
	if !errors.As(err, &e) || e.Kind != errs.Unsupported || !strings.Contains(e.Hint, "apt-get install") {
		t.Errorf("the error is %v", err)
	}
}

func TestAccelerationFollowsTheProbe(t *testing.T) {
	proven := func() kvm.Result { return kvm.Result{Usable: true, Why: "it runs"} }
	refuted := func() kvm.Result { return kvm.Result{Why: "it only emulates"} }
	allowed := func() ([]int, error) { return []int{107}, nil }
	denied := func() ([]int, error) { return nil, errors.New("only root may open it") }
	for _, c := range []struct {
		name, want string
		probe      func() kvm.Result
		group      func() ([]int, error)
		accel, why string // accel "" means refused
	}{
		{"auto, proven", AccelAuto, proven, allowed, AccelKVM, "it runs"},
		{"default, proven", "", proven, allowed, AccelKVM, "it runs"},
		{"auto, refuted", AccelAuto, refuted, allowed, AccelTCG, "it only emulates"},
		{"auto, no access", AccelAuto, proven, denied, AccelTCG, "only root"},
		{"kvm, refuted", AccelKVM, refuted, allowed, "", "it only emulates"},
		{"kvm, no access", AccelKVM, proven, denied, "", "only root"},
		{"tcg, though proven", AccelTCG, proven, allowed, AccelTCG, "configured"},
		{"unknown", "xen", proven, allowed, "", "xen"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := chooseAccel(c.want, c.probe, c.group)
			why := got.why
			if err != nil {
				why = err.Error()
			}
			if got.name != c.accel || (err != nil) != (c.accel == "") || !strings.Contains(why, c.why) {
				t.Errorf("%s: %+v, %v", c.name, got, err)
			}
			if c.accel == AccelKVM && !slices.Equal(got.groups, []int{107}) {
				t.Errorf("%s: groups %v", c.name, got.groups)
			}
		})
	}
}

func TestCommandLineKeepsTheCallersParameters(t *testing.T) {
	tcg, hw := acceleration{name: AccelTCG}, acceleration{name: AccelKVM}
	for _, c := range []struct {
		params string
		accel  acceleration
		want   string
	}{
		{"console=ttyS0", tcg, "console=ttyS0 reboot=t tsc_early_khz=2600000 tsc=reliable"},
		{"console=ttyS0", hw, "console=ttyS0 reboot=t"},
		{"reboot=k tsc=unstable", tcg, "reboot=k tsc=unstable tsc_early_khz=2600000"},
		{"", hw, "reboot=t"},
	} {
		t.Run(c.params, func(t *testing.T) {
			if got := cmdline(c.params, c.accel, 2_600_000); got != c.want {
				t.Errorf("%q: got %q, want %q", c.params, got, c.want)
			}
		})
	}
}

func TestMarkerIsParsed(t *testing.T) {
	for _, dir := range []string{"/var/lib/hatch/vms/vm_1", "/a,b/vm_1", "/a@b/,,/vm_1"} {
		t.Run(dir, func(t *testing.T) {
			id, got, ok := parseMarker([]string{"-name", marker("vm_1", dir), "-S"})
			if !ok || id != "vm_1" || got != dir {
				t.Errorf("the marker of vm_1 in %s is parsed as %q in %q, %v", dir, id, got, ok)
			}
		})
	}
	for _, args := range [][]string{
		nil,
		{"-name"},
		{"-name", "guest=vm_1"},
		{"-name", "guest=@/x"},
		{"-name", "guest=vm_1@x"},
		{"-name", "guest=vm_1@/x/../y"},
		{"-S", "-name", "guest=vm_1@/x"},
		{"-name", "vm_1@/x"},
	} {
		t.Run(fmt.Sprintf("%+v", args), func(t *testing.T) {
			if id, dir, ok := parseMarker(args); ok {
				t.Errorf("%v is parsed as %s in %s, want an error", args, id, dir)
			}
		})
	}
}

func TestSpecsThatCannotRunAreRefused(t *testing.T) {
	good := vmm.Spec{ID: "vm_1", Dir: "/run/vm_1", VCPUs: 1, MemMiB: 64}
	if err := checkSpec(good); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*vmm.Spec){
		"no id": func(s *vmm.Spec) { s.ID = "" }, "id with @": func(s *vmm.Spec) { s.ID = "a@b" }, "id with /": func(s *vmm.Spec) { s.ID = "../x" },
		"relative directory": func(s *vmm.Spec) { s.Dir = "x" }, "no CPU": func(s *vmm.Spec) { s.VCPUs = 0 },
		"no memory":   func(s *vmm.Spec) { s.MemMiB = 63 },
		"long serial": func(s *vmm.Spec) { s.Disks = []vmm.Disk{{Serial: strings.Repeat("x", 21)}} },
	} {
		t.Run(name, func(t *testing.T) {
			s := good
			change(&s)
			if err := checkSpec(s); !errs.Is(err, errs.Unsupported) {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
}

func TestLimitsIncludeGuestAndEmulator(t *testing.T) {
	s := vmm.Spec{ID: "vm_1", VCPUs: 2, MemMiB: 512}
	if got, want := *limits(s, acceleration{name: AccelKVM}, "/vms"), (jail.Cgroup{Parent: "/vms", Name: "vm_1", MemBytes: 640 << 20, CPUs: 2.5, Tasks: 130}); got != want {
		t.Errorf("kvm: %+v, want %+v", got, want)
	}
	if got := limits(s, acceleration{name: AccelTCG}, "").MemBytes; got != 896<<20 {
		t.Errorf("tcg: %d bytes", got)
	}
}

func TestASocketPathThatIsTooLongIsRefused(t *testing.T) {
	_, err := listen("/"+strings.Repeat("x", 120), qmpSocket)
	var e *errs.Error
	if !errors.As(err, &e) || e.Code != "path_too_long" || e.Hint == "" {
		t.Errorf("the error is %v", err)
	}
}

func TestListenReplacesStaleSocketsOnly(t *testing.T) {
	dir, err := os.MkdirTemp("", "sock")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	served, err := listen(dir, qmpSocket)
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(filepath.Join(dir, qmpSocket)); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	if _, err := listen(dir, qmpSocket); !errs.Is(err, errs.Conflict) {
		t.Errorf("a socket that is served was replaced: %v", err)
	}
	_ = served.Close()
	again, err := listen(dir, qmpSocket)
	if err != nil {
		t.Fatalf("a stale socket was not replaced: %v", err)
	}
	links, err := socketLinks()
	if err != nil || !jail.HoldsFile(os.Getpid(), links[filepath.Join(dir, qmpSocket)]) {
		t.Errorf("our own socket is not found: %v", err)
	}
	_ = again.Close()
}

func TestSocketTable(t *testing.T) {
	links := parseSocketTable("Num       RefCount Protocol Flags    Type St Inode Path\n" +
		"0000000000000000: 00000002 00000000 00010000 0001 01 12345 /run/a b\n" +
		"0000000000000000: 00000003 00000000 00000000 0001 03   777 /run/a b\n" +
		"0000000000000000: 00000003 00000000 00000000 0001 03 888\n" +
		"0000000000000000: 00000003 00000000 00000000 0001 03 999 @abstract\nshort\n")
	if len(links) != 1 || !links["/run/a b"]["socket:[12345]"] || !links["/run/a b"]["socket:[777]"] {
		t.Errorf("read as %v", links)
	}
}

func TestTheLogOfStderrIsBounded(t *testing.T) {
	dir := t.TempDir()
	output, w, err := newStderr(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteString(strings.Repeat("noise\n", jail.MaxOutput/3) + "the last line\n"); err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	if got := output.LastLine(); got != "the last line" {
		t.Errorf("the last line is %q", got)
	}
	output.Close()
	if st, err := os.Stat(filepath.Join(dir, vmm.LogName)); err != nil || st.Size() != jail.MaxOutput || st.Mode().Perm() != 0o600 {
		t.Errorf("the log: %+v, %v", st, err)
	}
}

func TestExpectedWarningsAreNotLogged(t *testing.T) {
	dir := t.TempDir()
	output, w, err := newStderr(dir)
	if err != nil {
		t.Fatal(err)
	}
	const noise = "qemu-system-x86_64: ram_block_discard_range: Failed to fallocate memory:8400000 +400000 (-1)\n"
	text := noise + "one\n" + strings.Repeat(noise, jail.MaxOutput/len(noise)) + strings.Repeat("x", 5000) + "\ntwo" // without a line break at the end
	if _, err := w.WriteString(text); err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	if got := output.LastLine(); got != "two" {
		t.Errorf("the last line is %q", got)
	}
	output.Close()
	if got, err := os.ReadFile(filepath.Join(dir, vmm.LogName)); err != nil || string(got) != "one\n"+strings.Repeat("x", 5000)+"\ntwo" {
		t.Errorf("the log has %d bytes, %.100q, %v", len(got), got, err)
	}
}

func TestTwoMeasurementsOfTheTSCAgree(t *testing.T) {
	a, b := readClock().kHz()(), readClock().kHz()()
	if a < 100_000 || max(a, b)-min(a, b) > a/1000 {
		t.Errorf("measured %d and %d kHz", a, b)
	}
}

func TestFilesThatTheUserMayNotReadAreCopied(t *testing.T) {
	dir := t.TempDir()
	for mode, copied := range map[os.FileMode]bool{0o600: os.Geteuid() != 12345, 0o644: false} {
		t.Run(fmt.Sprint(mode), func(t *testing.T) {
			path := filepath.Join(dir, mode.String())
			if err := os.WriteFile(path, []byte("kernel"), mode); err != nil {
				t.Fatal(err)
			}
			f, err := openForUser(path, 12345)
			if err != nil {
				t.Fatal(err)
			}
			link, err := os.Readlink(fdPath(int(f.Fd())))
			if err != nil || strings.HasPrefix(link, "/memfd:") != copied {
				t.Errorf("a file with mode %s is passed as %s, %v", mode, link, err)
			}
			content := make([]byte, 6)
			if _, err := f.ReadAt(content, 0); err != nil || string(content) != "kernel" {
				t.Errorf("content %q, %v", content, err)
			}
			_ = f.Close()
		})
	}
	if _, err := openForUser(dir, 0); err == nil {
		t.Error("a directory was opened as a kernel")
	}
}

func TestCauseOfExit(t *testing.T) {
	crash := jail.Status{Known: true, Signal: 9}
	for _, c := range []struct {
		name      string
		reason    string
		killed    bool
		status    jail.Status
		connected bool
		want      vmm.ExitCause
	}{
		{"guest powers off", "guest-shutdown", false, jail.Status{Known: true}, true, vmm.ExitShutdown},
		{"guest powers off while we kill", "guest-shutdown", true, crash, true, vmm.ExitShutdown},
		{"guest panics", "guest-panic", false, jail.Status{Known: true}, true, vmm.ExitPanic},
		{"guest resets", "guest-reset", false, jail.Status{Known: true}, true, vmm.ExitReset},
		{"we kill", "", true, crash, true, vmm.ExitKilled},
		{"another process kills", "", false, crash, true, vmm.ExitCrashed},
		{"another process sends SIGTERM", "host-signal", false, jail.Status{Known: true}, true, vmm.ExitCrashed},
		{"it fails", "", false, jail.Status{Known: true, Code: 1}, false, vmm.ExitCrashed},
		{"another daemon's child dies", "", false, jail.Status{}, true, vmm.ExitCrashed},
		{"nothing is known", "", false, jail.Status{}, false, vmm.ExitUnknown},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := &machine{reason: c.reason}
			if got := m.cause(vmm.Exit{}, c.status, c.killed, c.connected); got.Cause != c.want {
				t.Errorf("%+v, want %s", got, c.want)
			}
		})
	}
}

// pipeQMP returns a QMP client whose other end play serves, in QEMU's place.
func pipeQMP(t *testing.T, play func(net.Conn)) (*qmp, error) {
	t.Helper()
	ours, theirs := net.Pipe()
	done := make(chan struct{})
	go func() { defer close(done); play(theirs) }()
	t.Cleanup(func() { _ = theirs.Close(); _ = ours.Close(); <-done })
	_ = ours.SetReadDeadline(time.Now().Add(20 * time.Second))
	return newQMP(t.Context(), ours, func(qmpEvent) {})
}
