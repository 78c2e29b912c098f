package daemon_test

import (
	"context"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
	"github.com/hatchvm/hatch/internal/daemon"
	"github.com/hatchvm/hatch/internal/fake"
)

// streamed is a daemon whose member alice has a VM with a key's route to a service that
// never ends an answer.
type streamed struct {
	*world
	user   api.User
	key    api.Key
	vm     api.VM
	execID string
}

func newStreamed(t *testing.T) *streamed {
	t.Helper()
	guest := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "" {
			if conn, err := websocket.Accept(rw, r, nil); err == nil {
				_, _, _ = conn.Read(r.Context())
				_ = conn.CloseNow()
			}
			return
		}
		_, _ = io.WriteString(rw, "begun")
		_ = http.NewResponseController(rw).Flush()
		<-r.Context().Done()
	}))
	t.Cleanup(guest.Close)
	w := &world{dir: t.TempDir(), onHost: func(h *daemon.Host) {
		h.Guests.(*fake.Guests).DialPort = func(ctx context.Context, _ int) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "tcp", guest.Listener.Addr().String())
		}
	}}
	w.start(t)
	t.Cleanup(func() { _ = w.end() })
	s := &streamed{world: w}
	s.user, s.key = w.member(t, "alice")
	alice := w.as(t, s.key.Secret)
	body := api.CreateVM{Name: "web", MachineSpec: api.MachineSpec{EnableNetwork: new(false)}}
	var err error
	s.vm, err = alice.CreateVM(t.Context(), body, client.CreateOptions{Wait: "running"})
	ok(t, err)
	_, err = alice.CreateRoute(t.Context(), s.vm.ID, api.CreateRoute{Subdomain: "keyed", TargetPort: 80, Auth: &api.RouteAuth{Mode: api.AuthKey}})
	ok(t, err)
	started, err := alice.StartExec(t.Context(), s.vm.ID, api.RunExec{Command: api.Command{Argv: []string{"sleep", "1000"}}})
	ok(t, err)
	s.execID = started.ID
	return s
}

// open opens a stream of each kind with a key of alice's. Each channel is closed when
// its stream ends.
func (s *streamed) open(t *testing.T, secret string) map[string]<-chan struct{} {
	t.Helper()
	ctx, c, id := t.Context(), s.as(t, secret), s.vm.ID
	streams := map[string]<-chan struct{}{"events": s.follow(t, secret)}
	add := func(name string, next func() error, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		streams[name] = ended(next)
	}
	session, err := c.OpenExec(ctx, id, api.RunExec{Command: api.Command{Argv: []string{"sleep", "1000"}}})
	add("exec", untilExit(session), err)
	session, err = c.AttachExec(ctx, id, s.execID, 0)
	add("attach", untilExit(session), err)
	text, err := c.ExecLogs(ctx, id, s.execID, true)
	add("exec logs", untilEOF(text), err)
	text, err = c.VMLogs(ctx, id, client.LogOptions{Follow: true})
	add("logs", untilEOF(text), err)
	changes, err := c.WatchFiles(ctx, id, "/tmp", false)
	add("watch", untilError(changes), err)
	console, err := c.VMConsole(ctx, id, true)
	add("console", untilEOF(console), err)
	tunnel, err := c.OpenTunnel(ctx, id, 80)
	add("tunnel", untilEOF(tunnel), err)
	for _, host := range []string{"keyed.localhost", "80-web.localhost"} {
		body, err := through(ctx, s.proxyAddr(t), host, secret)
		add("answer of "+host, untilEOF(body), err)
		conn, _, err := websocket.Dial(ctx, "ws://"+s.proxyAddr(t), &websocket.DialOptions{ //nolint:bodyclose // it is the connection
			Host: host, HTTPClient: plain, HTTPHeader: http.Header{"X-API-Key": {secret}},
		})
		add("websocket of "+host, func() error { _, _, err := conn.Read(ctx); return err }, err)
	}
	return streams
}

// follow opens the caller's stream of events, and returns a channel that is closed when
// it ends.
func (w *world) follow(t *testing.T, secret string) <-chan struct{} {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, w.url(t)+"/events", nil)
	ok(t, err)
	r.Header.Set("Authorization", "Bearer "+secret)
	r.Header.Set("Accept", "text/event-stream")
	reply, err := plain.Do(r) //nolint:bodyclose // untilEOF closes it
	ok(t, err)
	if reply.StatusCode != http.StatusOK {
		t.Fatalf("the stream has status %d", reply.StatusCode)
	}
	return ended(untilEOF(reply.Body))
}

// through sends a request to a name of the proxy, and returns the answer's body, which
// goes on.
func through(ctx context.Context, at, host, secret string) (io.ReadCloser, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+at, nil)
	if err != nil {
		return nil, err
	}
	r.Host = host
	r.Header.Set("X-API-Key", secret)
	reply, err := plain.Do(r)
	if err == nil && reply.StatusCode != http.StatusOK {
		_ = reply.Body.Close()
		return nil, fmt.Errorf("status %d", reply.StatusCode)
	}
	if err != nil {
		return nil, err
	}
	return reply.Body, nil
}

func (w *world) proxyAddr(t *testing.T) string {
	t.Helper()
	addr, err := os.ReadFile(filepath.Join(w.dir, "proxy.addr"))
	ok(t, err)
	return strings.TrimSpace(string(addr))
}

// ended returns a channel that is closed when wait returns.
func ended(wait func() error) <-chan struct{} {
	done := make(chan struct{})
	go func() { defer close(done); _ = wait() }()
	return done
}

func untilEOF(r io.ReadCloser) func() error {
	return func() error {
		_, err := io.Copy(io.Discard, r)
		_ = r.Close()
		return err
	}
}

func untilExit(s *client.ExecSession) func() error {
	return func() error {
		_, err := s.Copy(io.Discard, io.Discard)
		_ = s.Close()
		return err
	}
}

func untilError[T any](seq iter.Seq2[T, error]) func() error {
	return func() error {
		for _, err := range seq {
			if err != nil {
				return err
			}
		}
		return nil
	}
}

// requireEnd checks that all streams have ended at a time.
func requireEnd(t *testing.T, why string, streams map[string]<-chan struct{}, limit time.Time) {
	t.Helper()
	ctx, cancel := context.WithDeadline(t.Context(), limit)
	defer cancel()
	for name, ended := range streams {
		select {
		case <-ended:
		case <-ctx.Done():
			t.Errorf("%s: the stream of %s goes on", why, name)
		}
	}
}

// requireOpen checks that no stream has ended.
func requireOpen(t *testing.T, why string, streams map[string]<-chan struct{}) {
	t.Helper()
	for name, ended := range streams {
		select {
		case <-ended:
			t.Errorf("%s: the stream of %s of another key has ended", why, name)
		default:
		}
	}
}

// Open streams of every kind end within a second when their key is revoked or expires,
// or its user is disabled; those of other keys go on, and so does what runs in the guest.
func TestStreamsEndWithTheirKey(t *testing.T) {
	s := newStreamed(t)
	bystander, own := s.follow(t, key), s.open(t, s.key.Secret)
	revoked, err := s.CreateKey(t.Context(), api.CreateKey{Name: "revoked", UserID: "alice"})
	ok(t, err)
	soon := api.Time{Time: time.Now().Add(2 * time.Second)}
	expires, err := s.CreateKey(t.Context(), api.CreateKey{Name: "expires", UserID: "alice", ExpiresAt: &soon})
	ok(t, err)

	expiring := s.open(t, expires.Secret)
	streams := s.open(t, revoked.Secret)
	ok(t, s.DeleteKey(t.Context(), revoked.ID))
	requireEnd(t, "revoked", streams, time.Now().Add(time.Second))
	requireEnd(t, "expired", expiring, soon.Add(time.Second))
	requireOpen(t, "revoked and expired", own)
	for secret, code := range map[string]string{revoked.Secret: "invalid_api_key", expires.Secret: "key_expired"} {
		_, err := s.as(t, secret).Me(t.Context())
		refusedAs(t, err, code)
	}

	_, err = s.UpdateUser(t.Context(), s.user.ID, api.UpdateUser{Disabled: new(true)})
	ok(t, err)
	requireEnd(t, "disabled", own, time.Now().Add(time.Second))
	requireOpen(t, "disabled", map[string]<-chan struct{}{"the admin's events": bystander})
	alice := s.as(t, s.key.Secret)
	_, err = alice.Me(t.Context())
	refusedAs(t, err, "user_disabled")
	_, err = s.UpdateUser(t.Context(), s.user.ID, api.UpdateUser{Disabled: new(false)})
	ok(t, err)
	commands, err := alice.ListExecs(t.Context(), s.vm.ID)
	ok(t, err)
	for _, c := range commands {
		if c.State != "running" {
			t.Errorf("the command %s is %s", c.ID, c.State)
		}
	}
	if len(commands) != 4 { // one in the background, and one of each key
		t.Errorf("%d commands", len(commands))
	}
}
