//nolint:bodyclose // world.do closes bodies at the end of a test, and connections close with theirs
package proxy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/quota"
	"github.com/hatchvm/hatch/internal/route"
	"github.com/hatchvm/hatch/internal/server/admission"
	"github.com/hatchvm/hatch/internal/vm"
)

// say is a guest that answers with what it got.
var say = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Guest", "yes")
	fmt.Fprintf(w, "%s %s %s\n", r.Method, r.Host, r.RequestURI)
	_ = r.Header.Write(w)
})

func TestARequestReachesTheGuest(t *testing.T) {
	w := newWorld(t, say)
	status, body, h := w.get("/a%2Fb//c?x=1;y&z=%zz", "User-Agent", "")
	if status != http.StatusOK || h.Get("X-Guest") != "yes" {
		t.Fatalf("got %d, %v", status, h)
	}
	if !strings.HasPrefix(body, "GET web.localhost /a%2Fb//c?x=1;y&z=%zz\n") {
		t.Errorf("the guest got %q", body)
	}
	if strings.Contains(body, "User-Agent") || strings.Contains(body, "Accept-Encoding: identity") {
		t.Errorf("the guest got headers that the client has not sent: %q", body)
	}
	if len(w.peers) != 1 || w.peers[0] != "route web.localhost from 127.0.0.1" {
		t.Errorf("the use is of %q", w.peers)
	}
	w.await("the use has ended", func() bool { return w.uses == 0 })
}

func TestAnswersOfTheDoor(t *testing.T) {
	unavailable := errs.New(errs.Exhausted, "memory_exhausted", "VM vm_abc123def456 needs 512 MiB in /var/lib/hatch")
	for name, c := range map[string]struct {
		host   string
		world  func(*world)
		status int
		code   string
		retry  bool
	}{
		"an unknown name":       {"other.localhost", nil, 404, "route_unknown", false},
		"a refused connection":  {"web.localhost", func(w *world) { w.address = "" }, 502, "port_closed", true},
		"a VM that stays awake": {"web.localhost", func(w *world) { w.machine, w.target.AutoWake = 0, false }, 503, "not_running", true},
		"a failed wake": {"web.localhost", func(w *world) {
			w.machine, w.wake = 0, func(context.Context) error { return unavailable }
		}, 503, "cannot_wake", true},
		"an owner's quota": {"web.localhost", func(w *world) {
			w.machine, w.wake = 0, func(context.Context) error { return quota.Exceeded(quota.Memory, 512, 256, 512) }
		}, 503, "owner_quota_exceeded", true},
		"a VM that is stopped": {"web.localhost", func(w *world) {
			w.machine, w.wake = 0, func(context.Context) error { return errs.New(errs.Conflict, "vm_not_running", "stopped") }
		}, 503, "not_running", true},
		"a VM that was deleted": {"web.localhost", func(w *world) {
			w.machine, w.wake = 0, func(context.Context) error { return errs.New(errs.NotFound, "vm_not_found", "none") }
		}, 404, "route_unknown", false},
		"an address that is not allowed": {"web.localhost", func(w *world) {
			w.target.Allowed = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
		}, 404, "route_unknown", false},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, say)
			if c.world != nil {
				c.world(w)
			}
			r := w.request(http.MethodGet, "/", nil)
			r.Host = c.host
			resp := w.do(r)
			var problem api.Problem
			if err := json.NewDecoder(resp.Body).Decode(&problem); err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode != c.status || problem.Status != c.status || problem.Code != c.code || problem.Error == "" {
				t.Errorf("got %d, %+v", resp.StatusCode, problem)
			}
			if got := resp.Header.Get("Retry-After") != ""; got != c.retry {
				t.Errorf("Retry-After %q", resp.Header.Get("Retry-After"))
			}
			r = w.request(http.MethodGet, "/", nil, "Accept", "text/html,*/*;q=0.8")
			r.Host = c.host
			resp = w.do(r)
			page := text(t, resp.Body)
			if resp.StatusCode != c.status || !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/html") || !strings.Contains(page, problem.Error) {
				t.Errorf("a browser got %d, %s", resp.StatusCode, page)
			}
			for _, inside := range []string{"vm_", "/var", "172.16", "MiB"} {
				if strings.Contains(page+fmt.Sprint(problem), inside) {
					t.Errorf("the answer has %q", inside)
				}
			}
			w.await("no use is left", func() bool { return w.uses == 0 })
		})
	}
}

func TestManyRequestsWakeOnce(t *testing.T) {
	w := newWorld(t, say)
	w.sleep()
	arrived := make(chan struct{})
	w.wake = func(context.Context) error { <-arrived; return nil }
	var all sync.WaitGroup
	var waited atomic.Int32
	for range 100 {
		all.Go(func() {
			resp, err := w.client().Do(w.request(http.MethodGet, "/", nil))
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				t.Errorf("got %d", resp.StatusCode)
			}
			if strings.HasPrefix(resp.Header.Get("Server-Timing"), "wake;dur=") {
				waited.Add(1)
			}
		})
	}
	w.await("all are in progress", func() bool { return w.uses == 100 })
	close(arrived)
	all.Wait()
	if w.wakes != 1 || waited.Load() == 0 {
		t.Errorf("%d wakes, of which %d clients are told", w.wakes, waited.Load())
	}
	if _, _, h := w.get("/"); h.Get("Server-Timing") != "" {
		t.Errorf("without a wake: Server-Timing %q", h.Get("Server-Timing"))
	}
}

func TestAWakeGoesOnWithoutItsClient(t *testing.T) {
	w := newWorld(t, say)
	w.sleep()
	gone, woken := make(chan struct{}), make(chan error, 1)
	w.wake = func(ctx context.Context) error { <-gone; woken <- ctx.Err(); return nil }
	ctx, cancel := context.WithCancel(t.Context())
	go func() { w.await("the wake began", func() bool { return w.wakes == 1 }); cancel() }()
	if resp, err := w.client().Do(w.request(http.MethodGet, "/", nil).WithContext(ctx)); err == nil {
		resp.Body.Close()
		t.Error("the client did not go")
	}
	w.await("the request has ended", func() bool { return w.uses == 0 })
	close(gone)
	if err := <-woken; err != nil {
		t.Errorf("the wake was ended: %v", err)
	}
	w.await("it is awake", func() bool { return w.machine != 0 })
}

func TestAWakeIsBounded(t *testing.T) {
	w := newWorld(t, say, func(c *Config) { c.WakeTimeout = 20 * time.Millisecond })
	w.sleep()
	w.wake = func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	if status, body, _ := w.get("/"); status != http.StatusServiceUnavailable || !strings.Contains(body, "cannot_wake") {
		t.Errorf("got %d, %s", status, body)
	}
}

func TestTheDoorClosesDuringAWake(t *testing.T) {
	w := newWorld(t, say)
	w.sleep()
	w.wake = func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	status := make(chan int)
	go func() { s, _, _ := w.get("/"); status <- s }()
	w.await("the wake began", func() bool { return w.wakes == 1 })
	w.proxy.Close()
	if got := <-status; got != http.StatusServiceUnavailable {
		t.Errorf("got %d", got)
	}
}

func TestAPortThatOpensAfterTheWakeIsAwaited(t *testing.T) {
	w := newWorld(t, say, func(c *Config) { c.WakeTimeout = time.Hour }) // a busy host needs seconds for what takes milliseconds
	w.sleep()
	w.refusals = 3
	if status, _, _ := w.get("/"); status != http.StatusOK || w.dials != 4 {
		t.Errorf("got %d after %d dials", status, w.dials)
	}
	w.refusals = 1
	w.mu.Lock()
	w.machine = 77 // no connection is left over
	w.mu.Unlock()
	if status, _, _ := w.get("/"); status != http.StatusBadGateway {
		t.Errorf("without a wake: got %d", status)
	}
}

func TestEachMachineGetsItsOwnConnections(t *testing.T) {
	w := newWorld(t, say)
	w.proxy.http1.IdleConnTimeout = time.Hour // requests on a busy host may be seconds apart
	for range 3 {
		w.get("/")
	}
	if w.dials != 1 {
		t.Errorf("%d connections for three requests", w.dials)
	}
	w.sleep()
	w.get("/")
	if w.dials != 2 || w.wakes != 1 {
		t.Errorf("%d connections, %d wakes after a sleep", w.dials, w.wakes)
	}
}

// A VM that fell asleep after the door looked for it is woken for the request.
func TestAMachineThatEndsBeforeTheConnection(t *testing.T) {
	w := newWorld(t, say)
	ended := false
	w.proxy.cfg.Guests = endsOnDial{w, &ended}
	resp := w.do(w.request(http.MethodPost, "/", strings.NewReader("body")))
	if resp.StatusCode != http.StatusOK || w.wakes != 1 {
		t.Errorf("got %d, %d wakes", resp.StatusCode, w.wakes)
	}
}

type endsOnDial struct {
	*world
	ended *bool
}

func (g endsOnDial) Dial(ctx context.Context, id string, port int) (vm.PortConn, error) {
	if !*g.ended {
		*g.ended = true
		g.sleep()
		return nil, errors.New("unreachable")
	}
	return g.world.Dial(ctx, id, port)
}

// A connection is not begun any longer for a client that has left.
func TestADialEndsWithItsRequest(t *testing.T) {
	w := newWorld(t, say)
	ended := make(chan error)
	w.proxy.cfg.Guests = neverDials{w, ended}
	ctx, cancel := context.WithCancel(t.Context())
	go func() { w.await("the dial began", func() bool { return w.dials == 1 }); cancel() }()
	if resp, err := w.client().Do(w.request(http.MethodGet, "/", nil).WithContext(ctx)); err == nil {
		resp.Body.Close()
		t.Error("the client did not go")
	}
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the dial ended by %v", err)
	}
}

type neverDials struct {
	*world
	ended chan error
}

func (g neverDials) Dial(ctx context.Context, _ string, _ int) (vm.PortConn, error) {
	g.mu.Lock()
	g.dials++
	g.mu.Unlock()
	<-ctx.Done()
	g.ended <- ctx.Err()
	return nil, ctx.Err()
}

// The sleeping VMs of one user do not keep those of others from being woken.
func TestPlacesToWaitAreSharedByUsers(t *testing.T) {
	w := newWorld(t, say, func(c *Config) { c.Open = admission.PlaceLimits{Total: 32, PerClient: 32} })
	w.sleep()
	awake := make(chan struct{})
	w.wake = func(context.Context) error { <-awake; return nil }
	wait := func(ownerID string) chan error {
		done := make(chan error, 1)
		go func() {
			_, err := w.proxy.awake(t.Context(), &visit{client: netip.MustParseAddr("192.0.2.1"), target: route.Target{VMID: vmID, OwnerID: ownerID, AutoWake: true}})
			done <- err
		}()
		return done
	}
	var waiting []chan error
	for range 4 { // half of a quarter
		waiting = append(waiting, wait("acc_a"))
	}
	w.await("all wait", func() bool {
		keep, short := w.proxy.wakers.Take("acc_a", 1)
		if short == admission.Enough {
			keep(0)
		}
		return short == admission.OfOwn
	})
	if err := <-wait("acc_a"); !errors.Is(err, tooMany) {
		t.Errorf("the user got another place: %v", err)
	}
	waiting = append(waiting, wait("acc_b"))
	w.await("the wake began", func() bool { return w.wakes == 1 })
	close(awake)
	for _, done := range waiting {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func TestPlacesAreBounded(t *testing.T) {
	hang := make(chan struct{})
	w := newWorld(t, http.HandlerFunc(func(_ http.ResponseWriter, _ *http.Request) { <-hang }),
		func(c *Config) { c.Open = admission.PlaceLimits{Total: 16, PerClient: 16} })
	var all sync.WaitGroup
	for range 8 { // half of them, for the user
		all.Go(func() {
			resp, err := w.client().Do(w.request(http.MethodGet, "/", nil))
			if err != nil {
				t.Error(err)
				return
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
		})
	}
	w.await("all are in progress", func() bool { return w.uses == 8 })
	status, body, h := w.get("/")
	if status != http.StatusServiceUnavailable || !strings.Contains(body, "too_many_requests") || h.Get("Retry-After") == "" {
		t.Errorf("got %d, %s, %v", status, body, h)
	}
	close(hang)
	all.Wait()
	if status, _, _ := w.get("/"); status != http.StatusOK {
		t.Errorf("afterwards: got %d", status)
	}
}

func TestConnectIsRefused(t *testing.T) {
	w := newWorld(t, say)
	r := w.request(http.MethodConnect, "/", nil)
	if resp := w.do(r); resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("got %d", resp.StatusCode)
	}
}
