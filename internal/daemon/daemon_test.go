package daemon_test

import (
	"cmp"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/config"
	"github.com/hatchvm/hatch/internal/daemon"
	"github.com/hatchvm/hatch/internal/fake/host"
	"github.com/hatchvm/hatch/internal/host/keyfile"
	"github.com/hatchvm/hatch/internal/image"
	"github.com/hatchvm/hatch/internal/store"
	"github.com/hatchvm/hatch/internal/vm"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a data directory, and the daemon over it, on a fake host.
type world struct {
	dir          string
	shuttingDown func(context.Context) (bool, error)
	settings     []string
	overTLS      bool               // the API is served so, and Client uses the local socket
	log          *slog.Logger       // nil: none
	serving      func() error       // Options.Serving
	onHost       func(*daemon.Host) // changes the fake host; nil: nothing
	defaultImage func()             // called when the default image is made; nil: nothing
	*client.Client
	end func() error // ends the daemon as a signal does, and waits for it
}

const key = "a-key-of-this-test-only"

func (w *world) config(t *testing.T) config.Config {
	t.Helper()
	cfg, err := config.Load(config.Sources{Executable: "/hatchd", Environ: append([]string{
		"HATCH_DATA_DIR=" + w.dir, "HATCH_HTTP_ADDR=127.0.0.1:0", "HATCH_PROXY_ADDR=127.0.0.1:0", "HATCH_API_KEY=" + key, "HATCH_WARM=off", "HATCH_DEFAULT_MEM_MIB=64",
	}, w.settings...)})
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

func (w *world) start(t *testing.T) {
	t.Helper()
	cfg := w.config(t)
	open := func(ctx context.Context, env daemon.HostEnv) (*daemon.Host, error) {
		h, err := host.Open(ctx, env)
		if err == nil {
			h.ShuttingDown = w.shuttingDown
			if w.onHost != nil {
				w.onHost(h)
			}
			w.hookDefaultImage(h)
		}
		return h, err
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- daemon.Run(ctx, cfg, daemon.Options{Version: "test", Log: cmp.Or(w.log, slog.New(slog.DiscardHandler)), Out: io.Discard, Host: open, Serving: w.serving})
	}()
	w.end = func() error { cancel(); return <-ended }
	w.Client = connect(t, w.dir, w.overTLS, ended)
}

func (w *world) hookDefaultImage(h *daemon.Host) {
	open := h.DefaultImage
	h.DefaultImage = func(owner string) (image.Image, error) {
		if w.defaultImage != nil {
			w.defaultImage()
		}
		return open(owner)
	}
}

// connect waits until the daemon serves, and its default image is made.
func connect(t *testing.T, dir string, throughSocket bool, ended <-chan error) *client.Client {
	t.Helper()
	transport := &http.Transport{DisableKeepAlives: true}
	socket := filepath.Join(dir, "hatchd.sock")
	if throughSocket {
		transport.DialContext = client.DialUnix(socket)
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); {
		select {
		case err := <-ended:
			t.Fatalf("the daemon has ended: %v", err)
		case <-tick.C:
		}
		addr, err := os.ReadFile(filepath.Join(dir, "hatchd.addr"))
		if err != nil {
			continue
		}
		server := "http://" + strings.TrimSpace(string(addr))
		if throughSocket {
			server = "unix://" + socket
		}
		c, err := client.New(server, key, client.WithHTTPClient(&http.Client{Transport: transport}))
		if err != nil {
			t.Fatal(err)
		}
		if h, err := c.Health(t.Context()); err == nil && h.Status == "ok" {
			return c
		}
	}
	t.Fatal("the daemon does not serve")
	return nil
}

// The daemon tells a shutdown of the host from a stop of its own.
func TestVMsGoDownOnlyWithTheHost(t *testing.T) {
	answer := func(stops bool, err error) func(context.Context) (bool, error) {
		return func(context.Context) (bool, error) { return stops, err }
	}
	// later answers with yes, but first with what it is given.
	later := func(first ...error) func(context.Context) (bool, error) {
		return func(context.Context) (bool, error) {
			if len(first) == 0 {
				return true, nil
			}
			err := first[0]
			first = first[1:]
			return false, err
		}
	}
	silent := errors.New("no answer")
	for name, c := range map[string]struct {
		shuttingDown func(context.Context) (bool, error)
		want         vm.State
		back         vm.Autostart
	}{
		"the host shuts down":    {answer(true, nil), vm.Snapshotted, vm.AutostartRunning},
		"only the daemon stops":  {answer(false, nil), vm.Running, vm.NoAutostart},
		"the host cannot tell":   {answer(false, silent), vm.Running, vm.NoAutostart},
		"the host follows":       {later(nil), vm.Snapshotted, vm.AutostartRunning},
		"the host answers late":  {later(silent, silent), vm.Snapshotted, vm.AutostartRunning},
		"the host does not know": {nil, vm.Running, vm.NoAutostart},
	} {
		t.Run(name, func(t *testing.T) {
			w := &world{dir: t.TempDir(), shuttingDown: c.shuttingDown}
			w.start(t)
			made, err := w.CreateVM(t.Context(), api.CreateVM{}, client.CreateOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if err := w.end(); err != nil {
				t.Fatal(err)
			}
			v := w.row(t, made.ID)
			if v.State != c.want || v.Autostart != c.back || (v.Sleep != nil) != (c.want == vm.Snapshotted) || (v.Sleep != nil && !v.Sleep.Durable) {
				t.Errorf("it is %s (%s), sleep %+v, to come back %q", v.State, v.StateReason, v.Sleep, v.Autostart)
			}
			w.start(t)
			if c.want == vm.Snapshotted {
				if _, err := w.WaitVM(t.Context(), made.ID, "running", time.Minute); err != nil {
					t.Errorf("it does not come back: %v", err)
				}
			}
			if err := w.end(); err != nil {
				t.Error(err)
			}
		})
	}
}

// systemd counts hatchd as started once it is told.
func TestServingIsReportedOnceTheAPIAnswers(t *testing.T) {
	w := &world{dir: t.TempDir()}
	told := make(chan error, 2)
	w.serving = func() error {
		addr, err := os.ReadFile(filepath.Join(w.dir, "hatchd.addr"))
		if err != nil {
			told <- err
			return nil
		}
		resp, err := http.Get("http://" + strings.TrimSpace(string(addr)) + "/healthz")
		if err == nil {
			err = resp.Body.Close()
		}
		told <- err
		http.DefaultClient.CloseIdleConnections()
		return errors.New("injected: there is no service manager") // which does not end hatchd
	}
	w.start(t)
	if err := w.end(); err != nil {
		t.Error(err)
	}
	if err := <-told; err != nil || len(told) > 0 {
		t.Errorf("the API does not answer yet: %v; told %d times more", err, len(told))
	}
}

// Background work that does not end takes no time from VMs that go down, and what
// it uses is closed only when it has ended.
func TestBackgroundWorkDoesNotDelayVMsThatGoDown(t *testing.T) {
	w := &world{dir: t.TempDir(), shuttingDown: func(context.Context) (bool, error) { return true, nil }}
	w.start(t)
	made, err := w.CreateVM(t.Context(), api.CreateVM{}, client.CreateOptions{})
	if err := errors.Join(err, w.end()); err != nil {
		t.Fatal(err)
	}
	working, release := make(chan struct{}), make(chan struct{})
	w.defaultImage = func() { close(working); <-release }
	w.start(t) // the default image is there already
	if _, err := w.WaitVM(t.Context(), made.ID, "running", time.Minute); err != nil {
		t.Error(err)
	}
	<-working
	ended := make(chan error, 1)
	go func() { ended <- w.end() }()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(15 * time.Second); w.row(t, made.ID).Sleep == nil; <-tick.C {
		if time.Now().After(deadline) {
			t.Error("the VM does not go down")
			break
		}
	}
	close(release)
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// row reads a VM while the daemon does not run.
func (w *world) row(t *testing.T, id string) vm.VM {
	t.Helper()
	hostID, err := store.HostID(w.dir)
	if err != nil {
		t.Fatal(err)
	}
	s, err := store.OpenFor(t.Context(), filepath.Join(w.dir, "hatch.db"), store.Directory{HostID: hostID, Keys: keyfile.File{Path: filepath.Join(w.dir, keyfile.Name)}})
	if err != nil {
		t.Fatal(err)
	}
	v, err := s.VM(t.Context(), access.Everyone, id)
	if err := errors.Join(err, s.Close()); err != nil {
		t.Fatal(err)
	}
	return v
}
