//go:build system

package e2e

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

// service is test/guestserver in two guests, which all rows about doors share: a guest
// takes longer to boot than most of them.
type service struct {
	*world
	vm     api.VM // with a network
	inner  api.VM // without one: it is reached through its agent
	marker string // what requireUnharmed finds in vm
}

// The ports of the host that lead to vm.
const (
	onePort = 19000 // to 8080
	twoPort = 19001 // to 8081, for clients of 127.0.0.2 only
)

// testService reaches programs in guests through every door, awake and asleep.
func testService(t *testing.T, w *world) {
	s := newService(t, w)
	for _, row := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"http", s.testHTTP},
		{"published ports", s.testPublishedPorts},
		{"a browser opens a page of a sleeping guest", s.testBrowser},
		{"websocket", s.testWebSocket},
		{"grpc", s.testGRPC},
		{"server-sent events", s.testEvents},
		{"large bodies", s.testLargeBodies},
		{"load", s.testLoad},
		{"programs keep their guest awake", s.testKeepAwake},
		{"an idle guest falls asleep by itself", s.testIdle},
		{"a download keeps its guest awake", s.testDownloadKeepsAwake},
		{"all is back after a restart of hatchd", s.testRestarts},
		{"hatchd is killed while a guest falls asleep", s.testKilledFallingAsleep},
		{"hatchd is killed while a request wakes a guest", s.testKilledWaking},
		{"listeners follow a change", s.testChangedPorts}, // after what needs them as they were
	} {
		t.Run(row.name, row.run)
	}
}

func newService(t *testing.T, w *world) *service {
	t.Helper()
	program, err := buildService(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	bodies := []api.CreateVM{minimal(), minimal()}
	for i := range bodies { // with less the program is read from the disk again and again
		bodies[i].MemMiB = new(2 * minimalMem)
	}
	bodies[0].Routes = []api.CreateRoute{{Subdomain: "service", TargetPort: 8080}, {Subdomain: "calls", TargetPort: 9000, Upstream: api.UpstreamH2C}}
	bodies[0].Ports = []api.Port{{Guest: 8080, Host: onePort}, {Guest: 8081, Host: twoPort, AllowedCIDRs: []string{"127.0.0.2"}}}
	bodies[1].EnableNetwork, bodies[1].Ports = new(false), []api.Port{{Guest: 8080}}
	vms, err := each(len(bodies), func(ctx context.Context, i int) (api.VM, error) {
		v, err := w.client.CreateVM(ctx, bodies[i], client.CreateOptions{Wait: "ready", WaitTimeout: readyLimit})
		if err == nil {
			err = startService(ctx, w.client, v, program)
		}
		return v, err
	})
	for _, v := range vms {
		if v.ID != "" {
			t.Cleanup(func() { w.cleanUp(t, v.ID) })
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	s := &service{world: w, vm: vms[0], inner: vms[1]}
	w.inside(t, s.vm, "mkdir /mem && mount -t tmpfs mem /mem && head -c 1000000 /dev/urandom | tee /mem/marker >/marker && sync")
	s.marker = s.look(t)
	return s
}

// buildService returns the program: one that lies beside the tests, or a new one in dir.
func buildService(ctx context.Context, dir string) (string, error) {
	if _, err := os.Stat("guestserver"); err == nil {
		return "guestserver", nil
	}
	program := filepath.Join(dir, "guestserver")
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", program, "./test/guestserver")
	build.Dir, build.Env, build.Stderr = repository(), append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false"), os.Stderr
	return program, build.Run()
}

// startService copies the program into a guest, and leaves it running there.
func startService(ctx context.Context, c *client.Client, v api.VM, program string) error {
	content, err := os.Open(program)
	if err != nil {
		return err
	}
	defer content.Close()
	if _, err := c.WriteFile(ctx, v.ID, "/usr/local/bin/guestserver", content, client.WriteOptions{Parents: true, Mode: new(uint32(0o755))}); err != nil {
		return err
	}
	_, err = c.RunExec(ctx, v.ID, api.RunExec{Command: api.Command{Shell: `setsid guestserver </dev/null >/var/log/guestserver 2>&1 &
until wget -qO - http://127.0.0.1:8080/health; do sleep 0.1; done`}})
	return err
}

// look shows which boot the guest is in, and what it has in its memory and on its disk.
func (s *service) look(t *testing.T) string {
	t.Helper()
	return s.inside(t, s.vm, "cat /proc/sys/kernel/random/boot_id; md5sum /mem/marker /marker; pidof guestserver")
}

// requireUnharmed checks that the guest goes on as it was.
func (s *service) requireUnharmed(t *testing.T) {
	t.Helper()
	if got := s.look(t); got != s.marker {
		t.Errorf("the guest has\n%s\nand had\n%s", got, s.marker)
	}
}

// restart ends hatchd by a signal, and starts it.
func (s *service) restart(t *testing.T, signal syscall.Signal) {
	t.Helper()
	s.stopDaemon(t, signal)
	s.startRecovered(t)
}

// startRecovered starts hatchd, and waits until it has opened the guests' ports: it serves
// before that.
func (s *service) startRecovered(t *testing.T) {
	t.Helper()
	s.startDaemon(t)
	_, _ = s.client.ResumeVM(t.Context(), s.vm.ID) // answers after the recovery; refused for a VM that sleeps
}

// fetch sends a request through the route to the pages, and returns the answer to it.
func (s *service) fetch(ctx context.Context, method, path string, body io.Reader) (*http.Response, error) {
	r, err := http.NewRequestWithContext(ctx, method, "http://"+proxyAddr+path, body)
	if err != nil {
		return nil, err
	}
	r.Host = "service.localhost"
	return direct.Do(r)
}

// well checks that the pages answer through the route.
func (s *service) well(ctx context.Context) error {
	resp, err := s.fetch(ctx, http.MethodGet, "/health", nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return requireWell(resp)
}

// testBrowser opens a page of a sleeping guest in Chromium, by the name that a route
// below localhost has: no DNS knows it.
func (s *service) testBrowser(t *testing.T) {
	want := s.inside(t, s.vm, "hostname") + " at service.localhost:9090"
	s.sleep(t, s.vm)
	ctx, cancel := context.WithTimeout(t.Context(), readyLimit)
	defer cancel()
	var complaints bytes.Buffer
	browser := exec.CommandContext(ctx, "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-proxy-server",
		"--virtual-time-budget=20000", "--user-data-dir="+t.TempDir(), "--dump-dom", "http://service.localhost:9090/")
	browser.Stderr = &complaints
	page, err := browser.Output()
	if err != nil || !strings.Contains(string(page), want) {
		t.Errorf("the page is %s, %v, want %q\n%s", page, err, want, complaints.Bytes())
	}
}
