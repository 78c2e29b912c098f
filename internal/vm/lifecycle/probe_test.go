package lifecycle_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/machine"
	"github.com/hatchvm/hatch/internal/vm"
)

// insides plays the servers inside guests: what listens on the network, and
// what the agent finds on loopback. It notes who was called.
type insides struct {
	mu              sync.Mutex
	called          []string
	network, inside string // addresses of this machine to connect to; "" refuses
	onCall          func(n int)
}

func (i *insides) dial(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	return i.connect(ctx, to.String(), i.network)
}

func (i *insides) guestDial(ctx context.Context, port int) (net.Conn, error) {
	return i.connect(ctx, fmt.Sprintf("agent:%d", port), i.inside)
}

func (i *insides) connect(ctx context.Context, name, to string) (net.Conn, error) {
	i.mu.Lock()
	i.called = append(i.called, name)
	n := len(i.called)
	i.mu.Unlock()
	if i.onCall != nil {
		i.onCall(n)
	}
	if to == "" {
		return nil, errs.New(errs.Unavailable, "port_refused", "nothing listens")
	}
	return new(net.Dialer).DialContext(ctx, "tcp", to)
}

func (i *insides) calls() string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return strings.Join(i.called, " ")
}

// probed makes a VM with these insides.
func probed(t *testing.T, i *insides, hasNetwork bool) (*world, vm.VM) {
	t.Helper()
	w := newWorld(t)
	w.shut(t)
	w.dial, w.guests.DialPort = i.dial, i.guestDial
	w.serve(t)
	return w, mustCreate(t, w, vm.CreateRequest{Overrides: machine.Overrides{EnableNetwork: &hasNetwork}})
}

// waitTimeout bounds waits for events that will come, on a busy machine too.
const waitTimeout = 30 * time.Second

// waitFor waits for what is known to end by itself.
func waitFor(t *testing.T, w *world, v vm.VM, want vm.WaitFor) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), waitTimeout)
	defer cancel()
	return waitUnder(ctx, t, w, v, want)
}

func waitUnder(ctx context.Context, t *testing.T, w *world, v vm.VM, want vm.WaitFor) error {
	t.Helper()
	got, err := w.Wait(ctx, access.Owner(owner), v.ID, want)
	if err == nil && got.ID != v.ID {
		t.Errorf("the wait returned %+v", got)
	}
	return err
}

// server serves pages on this machine and returns its address.
func server(t *testing.T, serve http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewServer(serve)
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

func TestPortsAreReachedByNetworkOrAgent(t *testing.T) {
	open := server(t, func(http.ResponseWriter, *http.Request) {})
	for _, c := range []struct {
		name       string
		insides    *insides
		hasNetwork bool
		met        bool
		called     string // at first
	}{
		{"by the network", &insides{network: open}, true, true, "172.16.0.2:80"},
		{"by the agent, behind a closed network", &insides{inside: open}, true, true, "172.16.0.2:80 agent:80"},
		{"by the agent, without a network", &insides{inside: open, network: open}, false, true, "agent:80"},
		{"by neither", &insides{}, true, false, "172.16.0.2:80 agent:80"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w, v := probed(t, c.insides, c.hasNetwork)
			ctx, leave := context.WithTimeout(t.Context(), waitTimeout)
			defer leave()
			c.insides.onCall = func(n int) {
				if n == 4 { // the second try of one that is not met
					leave()
				}
			}
			err := waitUnder(ctx, t, w, v, vm.WaitFor{Port: 80})
			if c.met != (err == nil) || err != nil && !errs.HasCode(err, "wait_timeout") {
				t.Errorf("got %v", err)
			}
			if got := c.insides.calls(); !strings.HasPrefix(got, c.called) {
				t.Errorf("called %s, want %s", got, c.called)
			}
			if err != nil && !strings.Contains(err.Error(), "port 80 accepts no connections") {
				t.Errorf("it does not say what was missing: %v", err)
			}
		})
	}
}

func TestPortOfAnUnreachableGuestIsImpossible(t *testing.T) {
	w, v := probed(t, &insides{}, false)
	w.guests.DialPort = func(context.Context, int) (net.Conn, error) {
		return nil, errs.New(errs.Unsupported, "agent_too_old", "too old")
	}
	if err := waitFor(t, w, v, vm.WaitFor{Port: 80}); !errs.HasCode(err, "wait_impossible") {
		t.Errorf("got %v", err)
	}
	if err := waitFor(t, w, v, vm.WaitFor{SSH: true}); !errs.HasCode(err, "wait_impossible") {
		t.Errorf("ssh without a network: %v", err)
	}
}

func TestWaitForAPage(t *testing.T) {
	for status, met := range map[int]bool{200: true, 204: true, 302: true, 399: true, 400: false, 404: false, 500: false, 503: false} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			ctx, leave := context.WithTimeout(t.Context(), waitTimeout)
			defer leave()
			asked := make(chan string, 1)
			var tries atomic.Int32
			address := server(t, func(w http.ResponseWriter, r *http.Request) {
				if tries.Add(1) == 1 {
					asked <- r.Method + " " + r.Host + " " + r.RequestURI
				} else { // the first was not enough
					leave()
				}
				w.Header().Set("Location", "http://192.0.2.1/")
				w.WriteHeader(103)
				w.WriteHeader(status)
			})
			i := &insides{inside: address}
			w, v := probed(t, i, false)
			err := waitUnder(ctx, t, w, v, vm.WaitFor{HTTP: vm.HTTPPage{Port: 8080, Path: "/a%2Fb?c=d"}})
			if met != (err == nil) || err != nil && (!errs.HasCode(err, "wait_timeout") || !strings.Contains(err.Error(), fmt.Sprint(status))) {
				t.Errorf("got %v", err)
			}
			if got := <-asked; got != "GET localhost:8080 /a%2Fb?c=d" {
				t.Errorf("the guest was asked for %s", got)
			}
			if got := strings.ReplaceAll(i.calls(), "agent:8080", ""); strings.TrimSpace(got) != "" {
				t.Errorf("another server was called: %s", got)
			}
		})
	}
}

func TestLatePageEndsTheWait(t *testing.T) {
	var tries atomic.Int32
	address := server(t, func(w http.ResponseWriter, r *http.Request) {
		if tries.Add(1) < 3 {
			w.WriteHeader(503)
		}
		if r.Host != "172.16.0.2:80" {
			t.Errorf("the host asked for is %s", r.Host)
		}
	})
	w, v := probed(t, &insides{network: address}, true)
	if err := waitFor(t, w, v, vm.WaitFor{HTTP: vm.HTTPPage{Port: 80, Path: "/"}}); err != nil || tries.Load() != 3 {
		t.Errorf("%v after %d tries", err, tries.Load())
	}
}

// TestServersThatDoNotAnswerAreBounded meets servers of all unhelpful kinds.
func TestServersThatDoNotAnswerAreBounded(t *testing.T) {
	for name, say := range map[string]func(net.Conn){
		"silent":                func(conn net.Conn) { _, _ = io.Copy(io.Discard, conn) },
		"rude":                  func(net.Conn) {},
		"endless header":        func(conn net.Conn) { forever(conn, "HTTP/1.1 200 OK\r\n", "X: y\r\n") },
		"endless line":          func(conn net.Conn) { forever(conn, "HTTP/1.1 200 ", "x") },
		"endless interim":       func(conn net.Conn) { forever(conn, "", "HTTP/1.1 103 Early Hints\r\n\r\n") },
		"another protocol":      func(conn net.Conn) { forever(conn, "SSH-2.0-x\r\n", "") },
		"switched to something": func(conn net.Conn) { forever(conn, "HTTP/1.1 101 Switching Protocols\r\n\r\n", "") },
	} {
		t.Run(name, func(t *testing.T) {
			i := &insides{inside: rawServer(t, say)}
			w, v := probed(t, i, false)
			ctx, leave := context.WithCancel(t.Context())
			defer leave()
			var left time.Time
			i.onCall = func(n int) {
				if n == 1 { // one that does not answer is never tried twice in this time
					time.AfterFunc(100*time.Millisecond, func() { left = time.Now(); leave() })
				}
			}
			err := waitUnder(ctx, t, w, v, vm.WaitFor{HTTP: vm.HTTPPage{Port: 80, Path: "/"}})
			if took := time.Since(left); !errs.HasCode(err, "wait_timeout") || took > 4*time.Second { // a try alone has 5 s
				t.Errorf("got %v %v after the caller has left", err, took)
			}
		})
	}
	t.Run("a body without an end", func(t *testing.T) {
		say := func(conn net.Conn) { forever(conn, "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n", "") }
		w, v := probed(t, &insides{inside: rawServer(t, say)}, false)
		if err := waitFor(t, w, v, vm.WaitFor{HTTP: vm.HTTPPage{Port: 80, Path: "/"}}); err != nil {
			t.Error(err)
		}
	})
}

// forever says something once and then something else until the reader leaves.
func forever(conn net.Conn, first, then string) {
	_, err := io.WriteString(conn, first)
	for err == nil && then != "" {
		_, err = io.WriteString(conn, strings.Repeat(then, 100))
	}
	_, _ = io.Copy(io.Discard, conn)
}

// rawServer serves connections as say does.
func rawServer(t *testing.T, say func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var served sync.WaitGroup
	served.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			served.Go(func() {
				defer func() { _ = conn.Close() }()
				say(conn)
			})
		}
	})
	t.Cleanup(func() { _ = l.Close(); served.Wait() })
	return l.Addr().String()
}

func TestInvalidPathIsRefused(t *testing.T) {
	w, v := probed(t, &insides{}, false)
	for _, path := range []string{"", "health", "/%zz", "/\x00"} {
		if err := waitFor(t, w, v, vm.WaitFor{HTTP: vm.HTTPPage{Port: 80, Path: path}}); !errs.Is(err, errs.Invalid) {
			t.Errorf("%q: %v", path, err)
		}
	}
}
