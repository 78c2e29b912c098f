package httpapi_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/server/httpapi"
)

func TestLogOptions(t *testing.T) {
	s := newServer(t)
	for query, want := range map[string]int{"": -1, "?tail=0": -1, "?tail=5": 5, "?source=console&tail=1000000": 1000000} {
		s.vms.log = func(_ context.Context, tail int, follow bool, _ io.Writer) error {
			if tail != want || follow {
				t.Errorf("%q asks for %d lines, follow %v", query, tail, follow)
			}
			return nil
		}
		reply := s.call(t, "GET", "/vms/"+knownVM+"/logs"+query, "")
		wantStatus(t, reply, 200)
		if len(reply.body) != 0 {
			t.Errorf("an empty log is %q", reply.body)
		}
	}
}

// TestFollow reads a line before the next is written, and then leaves.
func TestFollow(t *testing.T) {
	s := newServer(t)
	goOn, left := make(chan struct{}), make(chan struct{})
	s.vms.log = func(ctx context.Context, _ int, follow bool, w io.Writer) error {
		defer close(left)
		if !follow {
			t.Error("not asked to follow")
		}
		for _, line := range []string{"one\n", "two\n"} { // the answer has begun before the first
			select {
			case <-goOn:
				_, _ = io.WriteString(w, line)
			case <-ctx.Done():
			}
		}
		<-ctx.Done()
		return ctx.Err()
	}
	ctx, leave := context.WithTimeout(t.Context(), 10*time.Second)
	defer leave()
	resp, err := http.DefaultClient.Do(s.request(t, "GET", "/vms/"+knownVM+"/logs?follow=true", "").WithContext(ctx))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewReader(resp.Body)
	for _, want := range []string{"one\n", "two\n"} {
		select {
		case goOn <- struct{}{}:
		case <-ctx.Done():
			t.Fatal("the log is not asked for")
		}
		if line, err := lines.ReadString('\n'); line != want || err != nil {
			t.Fatalf("read %q, %v", line, err)
		}
	}
	leave()
	<-left
}

func TestLogFails(t *testing.T) {
	s := newServer(t)
	s.vms.log = func(context.Context, int, bool, io.Writer) error {
		return errs.New(errs.Unavailable, "no_log", "there is no log yet")
	}
	wantStatus(t, s.call(t, "GET", "/vms/"+knownVM+"/logs", ""), 503)

	s.vms.log = func(_ context.Context, _ int, _ bool, w io.Writer) error {
		_, _ = io.WriteString(w, strings.Repeat("line\n", 10_000))
		return errors.New("read /var/lib/hatch: input/output error")
	}
	resp, err := http.DefaultClient.Do(s.request(t, "GET", "/vms/"+knownVM+"/logs", ""))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.ReadAll(resp.Body); err == nil {
		t.Error("half a log looks like a whole one")
	}
	if !strings.Contains(s.log.String(), "input/output error") {
		t.Error("the log does not have the cause")
	}
}

// dial opens the console. A refusal is returned as its status and content type.
func (s *server) dial(t *testing.T, query string, change func(http.Header)) (conn *websocket.Conn, refusal string) {
	t.Helper()
	header := http.Header{"Authorization": {"Bearer " + goodKey}}
	if change != nil {
		change(header)
	}
	conn, resp, err := websocket.Dial(t.Context(), s.URL+"/vms/"+knownVM+"/console"+query, &websocket.DialOptions{HTTPHeader: header}) //nolint:bodyclose // the dialer has read it
	if resp == nil {
		t.Fatal(err)
	}
	if err != nil {
		return nil, fmt.Sprintf("%d %s", resp.StatusCode, resp.Header.Get("Content-Type"))
	}
	t.Cleanup(func() { _ = conn.CloseNow() })
	return conn, ""
}

// open is dial where nothing is refused.
func (s *server) open(t *testing.T, query string, change func(http.Header)) *websocket.Conn {
	t.Helper()
	conn, refusal := s.dial(t, query, change)
	if refusal != "" {
		t.Fatal(refusal)
	}
	return conn
}

// A page that may call the API may open its WebSockets, too.
func TestConsoleOfAnAllowedOrigin(t *testing.T) {
	const page = "https://console.example.org"
	s := newLimitedServer(t, httpapi.Limits{}, page)
	s.vms.console = func(bool) (io.ReadWriteCloser, error) {
		_, console := net.Pipe()
		return console, nil
	}
	s.open(t, "?readonly=true", func(h http.Header) { h.Set("Origin", page) })
}

func TestConsole(t *testing.T) {
	s := newServer(t)
	guest, console := net.Pipe()
	s.vms.console = func(readOnly bool) (io.ReadWriteCloser, error) {
		if readOnly {
			t.Error("asked for a console to watch")
		}
		return console, nil
	}
	conn := s.open(t, "", func(h http.Header) { h.Set("Origin", s.URL) })
	go func() { _, _ = io.WriteString(guest, "login: \xff") }()
	kind, got, err := conn.Read(t.Context())
	if err != nil || kind != websocket.MessageBinary || string(got) != "login: \xff" {
		t.Fatalf("read %q of kind %v, %v", got, kind, err)
	}
	if err := conn.Write(t.Context(), websocket.MessageBinary, []byte("root\n")); err != nil {
		t.Fatal(err)
	}
	typed := make([]byte, 5)
	if _, err := io.ReadFull(guest, typed); err != nil || string(typed) != "root\n" {
		t.Fatalf("the guest reads %q, %v", typed, err)
	}
	_ = conn.Close(websocket.StatusNormalClosure, "")
	if _, err := guest.Read(typed); err == nil {
		t.Error("the console stays open after its client left")
	}
}

func TestConsoleEndsWithTheGuest(t *testing.T) {
	s := newServer(t)
	guest, console := net.Pipe()
	s.vms.console = func(bool) (io.ReadWriteCloser, error) { return console, nil }
	conn := s.open(t, "", nil)
	_ = guest.Close()
	if _, _, err := conn.Read(t.Context()); websocket.CloseStatus(err) != websocket.StatusNormalClosure {
		t.Errorf("read ends with %v", err)
	}
}

// TestConsoleReadOnly types into a console that is only watched.
func TestConsoleReadOnly(t *testing.T) {
	s := newServer(t)
	guest, console := net.Pipe()
	s.vms.console = func(readOnly bool) (io.ReadWriteCloser, error) {
		if !readOnly {
			t.Error("asked for a console to type into")
		}
		return console, nil
	}
	conn := s.open(t, "?readonly=true", nil)
	typed := make(chan string)
	go func() {
		all, _ := io.ReadAll(guest)
		typed <- string(all)
	}()
	if err := conn.Write(t.Context(), websocket.MessageBinary, []byte("rm -rf /\n")); err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = io.WriteString(guest, "$ ") }()
	if _, got, err := conn.Read(t.Context()); err != nil || string(got) != "$ " {
		t.Errorf("read %q, %v", got, err)
	}
	_ = conn.Close(websocket.StatusNormalClosure, "")
	if got := <-typed; got != "" {
		t.Errorf("the guest reads %q", got)
	}
}

func TestConsoleRefusals(t *testing.T) {
	s := newServer(t)
	s.vms.console = func(bool) (io.ReadWriteCloser, error) {
		return nil, errs.New(errs.Conflict, "console_taken", "another caller writes")
	}
	cases := []struct {
		name   string
		change func(http.Header)
		status int
	}{
		{"no key", func(h http.Header) { h.Del("Authorization") }, 401},
		{"basic", func(h http.Header) { h.Set("Authorization", "Basic bWU6aGtfZ29vZA==") }, 401},
		{"a page of another site", func(h http.Header) { h.Set("Origin", "https://evil.example") }, 403},
		{"a sandboxed page", func(h http.Header) { h.Set("Origin", "null") }, 403},
		{"taken", nil, 409},
	}
	for _, c := range cases {
		if _, refusal := s.dial(t, "", c.change); refusal != fmt.Sprintf("%d application/problem+json", c.status) {
			t.Errorf("%s: %q", c.name, refusal)
		}
	}
}
