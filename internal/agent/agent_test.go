package agent

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/guest/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestCloudInitIsWatched changes files as cloud-init does.
func TestCloudInitIsWatched(t *testing.T) {
	root := t.TempDir()
	write(t, filepath.Join(root, "usr/bin/cloud-init"), "")
	write(t, filepath.Join(root, "run/other"), "")
	a := New(slog.New(slog.DiscardHandler), "test")
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		a.watchCloudInit(ctx, root)
	}()
	defer func() {
		cancel()
		<-ended
	}()

	if st, _ := a.status.read(); st.CloudInit.Status != wire.CloudInitRunning {
		t.Errorf("before cloud-init ran: %+v", st.CloudInit)
	}
	write(t, filepath.Join(root, "run/cloud-init/status.json"), "{}")
	write(t, filepath.Join(root, "var/lib/cloud/data/result.json"), `{"v1":{"datasource":"NoCloud","errors":["it broke"]}}`)
	_, changed := a.status.read()
	if err := os.Symlink("../../var/lib/cloud/data/result.json", filepath.Join(root, "run/cloud-init/result.json")); err != nil {
		t.Fatal(err)
	}
	<-changed
	want := wire.CloudInit{Status: wire.CloudInitError, Errors: []string{"it broke"}}
	if st, _ := a.status.read(); !reflect.DeepEqual(st.CloudInit, want) {
		t.Errorf("after its result: %+v", st.CloudInit)
	}
}

func TestCloudInitOfAnImage(t *testing.T) {
	for name, c := range map[string]struct {
		files map[string]string
		want  string
	}{
		"without it":                {map[string]string{"run/x": ""}, wire.CloudInitAbsent},
		"before it runs":            {map[string]string{"usr/bin/cloud-init": "", "run/x": ""}, wire.CloudInitRunning},
		"disabled by the image":     {map[string]string{"usr/bin/cloud-init": "", "run/x": "", "etc/cloud/cloud-init.disabled": ""}, wire.CloudInitDisabled},
		"disabled by its generator": {map[string]string{"usr/bin/cloud-init": "", "run/cloud-init/disabled": ""}, wire.CloudInitDisabled},
		"done":                      {map[string]string{"usr/bin/cloud-init": "", "run/cloud-init/result.json": `{"v1":{"errors":[]}}`}, wire.CloudInitDone},
		"with a broken result":      {map[string]string{"usr/bin/cloud-init": "", "run/cloud-init/result.json": `{"v1":`}, wire.CloudInitError},
	} {
		root := t.TempDir()
		for path, text := range c.files {
			write(t, filepath.Join(root, path), text)
		}
		a := New(slog.New(slog.DiscardHandler), "test")
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			a.watchCloudInit(ctx, root)
		}()
		st, changed := a.status.read()
		if st.CloudInit.Status != c.want { // it was not read yet
			<-changed
			st, _ = a.status.read()
		}
		cancel()
		<-ended
		if st.CloudInit.Status != c.want {
			t.Errorf("%s: %+v, want %s", name, st.CloudInit, c.want)
		}
	}
}

func FuzzParseResult(f *testing.F) {
	f.Add([]byte(`{"v1":{"errors":["a"]}}`))
	f.Add([]byte(`{"v1":{"errors":[` + strings.Repeat(`"\u00e4",`, 20) + `"x"]}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		c := parseResult(raw)
		if len(c.Errors) > maxErrors {
			t.Errorf("%d errors", len(c.Errors))
		}
		for _, e := range c.Errors {
			if len(e) > maxErrorText {
				t.Errorf("%d bytes of text", len(e))
			}
		}
	})
}

func TestInitIsRecognised(t *testing.T) {
	for _, c := range []struct{ exe, comm, want string }{
		{"/usr/lib/systemd/systemd", "systemd", "systemd"},
		{"/lib/systemd/systemd", "init", "systemd"},
		{"/bin/busybox", "init", "busybox"},
		{"/bin/busybox.static", "init", "busybox"},
		{"/sbin/init", "init", "init"},
		{"/init", "init", "hatch-agent"},
	} {
		proc := t.TempDir()
		write(t, filepath.Join(proc, "1/comm"), c.comm+"\n")
		for path, target := range map[string]string{"1/exe": c.exe, "self/exe": "/init"} {
			if err := os.MkdirAll(filepath.Dir(filepath.Join(proc, path)), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(target, filepath.Join(proc, path)); err != nil {
				t.Fatal(err)
			}
		}
		if pid1 := findInit(proc); pid1.name != c.want {
			t.Errorf("%s (%s) is recognised as %q, want %q", c.exe, c.comm, pid1.name, c.want)
		}
	}
}

// TestInitHandlesSignal uses the signal masks of real inits.
func TestInitHandlesSignal(t *testing.T) {
	const (
		begun   = "SigBlk:\t0000000000000000\nSigCgt:\t0000000000000000\n"
		systemd = "SigBlk:\t7be3c0fe28014a03\nSigIgn:\t0000000000001000\nSigCgt:\t00000001000004ec\n"
		crashes = "SigBlk:\t0000000000000000\nSigCgt:\t00000001000004ec\n" // systemd, a little earlier
		waits   = "SigBlk:\t0000000000000000\nSigCgt:\t0000000000080000\n" // busybox
	)
	for _, c := range []struct {
		status string
		signal unix.Signal
		want   bool
	}{
		{begun, systemdPowerOff, false},
		{crashes, systemdPowerOff, false},
		{systemd, systemdPowerOff, true},
		{systemd, systemdReboot, true},
		{begun, unix.SIGUSR2, false},
		{waits, unix.SIGUSR2, true},
	} {
		if got := handles(c.status, c.signal); got != c.want {
			t.Errorf("%q, %v: %v, want %v", c.status, c.signal, got, c.want)
		}
	}
	status := filepath.Join(t.TempDir(), "status")
	write(t, status, begun)
	if awaitHandler(status, unix.SIGTERM, time.Millisecond) {
		t.Error("awaitHandler found a handler in a process without one")
	}
	later := filepath.Join(filepath.Dir(status), "later")
	write(t, later, systemd)
	time.AfterFunc(10*time.Millisecond, func() { _ = os.Rename(later, status) })
	if !awaitHandler(status, systemdReboot, time.Minute) {
		t.Error("awaitHandler did not find the handler")
	}
}

func TestPortIsFoundByName(t *testing.T) {
	sys, dev := t.TempDir(), t.TempDir()
	write(t, filepath.Join(sys, "class/virtio-ports/vport0p1/name"), "org.other.0\n")
	write(t, filepath.Join(sys, "class/virtio-ports/vport0p2/name"), portName+"\n")
	if got := findPort(sys, dev); got != "" {
		t.Errorf("found %q before there is a device", got)
	}
	write(t, filepath.Join(dev, "vport0p2"), "")
	if got := findPort(sys, dev); got != filepath.Join(dev, "vport0p2") {
		t.Errorf("found %q", got)
	}
}

func TestWatchReportsChangesOnly(t *testing.T) {
	a := New(slog.New(slog.DiscardHandler), "test")
	ctx, cancel := context.WithCancel(t.Context())
	reports := make(chan wire.Status, 16)
	ended := make(chan error, 1)
	go func() {
		ended <- a.Watch(ctx, func(st wire.Status) error { reports <- st; return nil })
	}()
	<-reports
	a.status.setCloudInit(wire.CloudInit{Status: wire.CloudInitRunning}) // as before
	a.status.setAddresses([]wire.Address{{Interface: "eth0", Prefix: "172.16.0.10/24"}})
	if st := <-reports; len(st.Addresses) != 1 {
		t.Errorf("got %+v", st)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the watch ended with %v", err)
	}
	if len(reports) > 0 {
		t.Errorf("a report without a change: %+v", <-reports)
	}
}
