//go:build system

package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
	"github.com/hatchvm/hatch/test/sandbox"
)

const (
	revokedLimit = 2 * time.Second // until the streams of a key that is revoked have ended
	ticking      = "while :; do echo tick; sleep 0.2; done"
	storedEvents = "events"
	slowly       = "/source?bytes=1000000000&pause=200ms" // a download of the guest's that does not end
)

// visitAs sends a request to a name of the proxy, with a key; "" for none.
func visitAs(ctx context.Context, key, host, path string) (webAnswer, error) {
	body, status, err := download(ctx, key, host, path)
	if err != nil {
		return webAnswer{}, err
	}
	defer body.Close()
	text, err := io.ReadAll(body)
	return webAnswer{status: status, body: text}, err
}

func download(ctx context.Context, key, host, path string) (body io.ReadCloser, status int, err error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+proxyAddr+path, nil)
	if err != nil {
		return nil, 0, err
	}
	r.Host = host
	if key != "" {
		r.Header.Set("X-API-Key", key)
	}
	resp, err := direct.Do(r)
	if err != nil {
		return nil, 0, err
	}
	return resp.Body, resp.StatusCode, nil
}

// stream is one that a key has opened, and that goes on until hatchd ends it.
type stream struct {
	name  string
	ticks bool         // whether the guest sends again and again
	parts atomic.Int64 // that have come
	ended chan struct{}
	err   error // valid once ended is closed
}

// reader returns what next of a stream is that is read.
func reader(r io.Reader) func() error {
	part := make([]byte, 4<<10)
	return func() error { _, err := r.Read(part); return err }
}

// pull returns what next of a stream is that is iterated over.
func pull[T any](seq iter.Seq2[T, error]) func() error {
	next, stop := iter.Pull2(seq)
	return func() error {
		_, err, more := next()
		if err == nil && more {
			return nil
		}
		stop()
		return errors.Join(err, io.EOF)
	}
}

// output returns what next of a command's output is.
func output(s *client.ExecSession) func() error {
	return func() error {
		out, err := s.Next()
		if out.Exit != nil {
			err = fmt.Errorf("the command has ended: %+v", out.Exit)
		}
		return err
	}
}

// opener opens streams of one key to one guest.
type opener struct {
	*client.Client
	t       *testing.T
	m       *member
	key     string
	streams []*stream
}

// follow has a goroutine read a stream until it ends.
func (o *opener) follow(name string, ticks bool, next func() error, err error) {
	o.t.Helper()
	if err != nil {
		o.t.Fatalf("%s: %v", name, err)
	}
	s := &stream{name: name, ticks: ticks, ended: make(chan struct{})}
	o.streams = append(o.streams, s)
	go func() {
		defer close(s.ended)
		for s.err = next(); s.err == nil; s.err = next() {
			s.parts.Add(1)
		}
	}()
}

// openStreams opens one stream of each kind to a member's guest, with a key of its.
// With service, those to the guest's service are among them.
func (u *users) openStreams(t *testing.T, m *member, key api.Key, readOnly, service bool) []*stream {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	o := &opener{Client: u.as(t, key), t: t, m: m, key: key.Secret}
	t.Cleanup(func() {
		cancel()
		for _, s := range o.streams {
			<-s.ended
		}
	})
	o.openAPI(ctx, readOnly)
	if service {
		o.openService(ctx)
	}
	for _, s := range o.streams {
		if s.ticks || s.name == storedEvents { // which is opened when it is read
			requireParts(t, s, 1)
		}
	}
	return o.streams
}

func (o *opener) openAPI(ctx context.Context, readOnly bool) {
	o.t.Helper()
	vm := o.m.vm.ID
	session, err := o.OpenExec(ctx, vm, line(ticking))
	o.follow("exec", true, output(session), err)
	attached, err := o.AttachExec(ctx, vm, o.m.exec.ID, 0)
	o.follow("attach", true, output(attached), err)
	written, err := o.ExecLogs(ctx, vm, o.m.exec.ID, true)
	o.follow("logs of an exec", true, reader(written), err)
	console, err := o.VMConsole(ctx, vm, readOnly)
	o.follow("console", false, reader(console), err)
	log, err := o.VMLogs(ctx, vm, client.LogOptions{Follow: true})
	o.follow("logs", false, reader(log), err)
	changes, err := o.WatchFiles(ctx, vm, "/etc", false)
	o.follow("watch", false, pull(changes), err)
	opts := fromStart()
	o.follow(storedEvents, false, pull(o.FollowEvents(ctx, &opts)), nil)
}

func (o *opener) openService(ctx context.Context) {
	o.t.Helper()
	tunnel, err := o.OpenTunnel(ctx, o.m.vm.ID, 8080)
	if err == nil {
		_, err = fmt.Fprintf(tunnel, "GET %s HTTP/1.1\r\nHost: guest\r\n\r\n", slowly)
	}
	o.follow("tunnel", true, reader(tunnel), err)
	for _, host := range []string{o.m.user.Name + ".localhost", implicit(o.m.vm, 8080)} {
		body, _, err := download(ctx, o.key, host, slowly)
		o.follow("download from "+host, true, reader(body), err)
		conn, _, err := websocket.Dial(ctx, "ws://"+proxyAddr+"/echo", &websocket.DialOptions{ //nolint:bodyclose // it is the connection
			Host: host, HTTPClient: direct, HTTPHeader: http.Header{"X-API-Key": {o.key}},
		})
		o.follow("websocket of "+host, false, func() error { _, _, err := conn.Read(ctx); return err }, err)
	}
}

// requireParts waits until so many parts of a stream have come.
func requireParts(t *testing.T, s *stream, want int64) {
	t.Helper()
	if err := sandbox.Poll(normalReply, func() (bool, error) { return s.parts.Load() >= want, nil }); err != nil {
		t.Errorf("%s: %d parts have come, not %d: %v", s.name, s.parts.Load(), want, err)
	}
}

// requireEnds checks that streams have ended soon after now.
func requireEnds(t *testing.T, streams []*stream) {
	t.Helper()
	began := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), revokedLimit)
	defer cancel()
	for _, s := range streams {
		select {
		case <-s.ended:
		case <-ctx.Done():
			t.Errorf("%s goes on", s.name)
		}
	}
	took(t, fmt.Sprintf("until %d streams have ended", len(streams)), began)
}

// requireGoOn checks that streams have not ended.
func requireGoOn(t *testing.T, streams []*stream) {
	t.Helper()
	for _, s := range streams {
		select {
		case <-s.ended:
			t.Errorf("%s of another key has ended: %v", s.name, s.err)
			continue
		default:
		}
		if s.ticks {
			requireParts(t, s, s.parts.Load()+1)
		}
	}
}

// testRevoked revokes a key with open streams, and then disables its user, whose other
// key has as many. What runs in the guest goes on.
func (u *users) testRevoked(t *testing.T) {
	ctx := t.Context()
	first, second := u.newKey(t, "alice", "first"), u.newKey(t, "alice", "second")
	revoked := u.openStreams(t, u.alice, first, false, true)
	stays := u.openStreams(t, u.alice, second, true, true)
	bystander := u.openStreams(t, u.bob, u.bob.key, false, false)
	if err := u.client.DeleteKey(ctx, first.ID); err != nil {
		t.Fatal(err)
	}
	requireEnds(t, revoked)
	requireGoOn(t, stays)
	u.requireRunning(t, 3)

	if _, err := u.client.UpdateUser(ctx, "alice", api.UpdateUser{Disabled: new(true)}); err != nil {
		t.Fatal(err)
	}
	requireEnds(t, stays)
	requireGoOn(t, bystander)
	if _, err := u.alice.Me(ctx); !client.HasCode(err, "user_disabled") {
		t.Errorf("the user's other key: %v", err)
	}
	if _, err := u.client.UpdateUser(ctx, "alice", api.UpdateUser{Disabled: new(false)}); err != nil {
		t.Fatal(err)
	}
	u.requireRunning(t, 3)
}

// requireRunning checks how many of alice's commands run.
func (u *users) requireRunning(t *testing.T, want int) {
	t.Helper()
	commands, err := u.alice.ListExecs(t.Context(), u.alice.vm.ID)
	running := 0
	for _, c := range commands {
		if c.State == "running" {
			running++
		}
	}
	if err != nil || running != want {
		t.Errorf("%d commands run in the guest, want %d: %v", running, want, err)
	}
}

// fromStart are the options for all events.
func fromStart() client.EventOptions { return client.EventOptions{} }
