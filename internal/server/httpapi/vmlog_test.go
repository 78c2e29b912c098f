package httpapi_test

import (
	"bufio"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/hatchvm/hatch/internal/host/console"
	"github.com/hatchvm/hatch/internal/vm"
)

// readEvents returns the data of the next events, a line's end between the
// lines of one.
func readEvents(t *testing.T, stream io.Reader, n int) []string {
	t.Helper()
	var seen, data []string
	lines := bufio.NewReader(stream)
	for len(seen) < n {
		line, err := lines.ReadString('\n')
		if err != nil {
			t.Fatalf("the stream ends with %v after %q", err, seen)
		}
		if text, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "data: "); ok {
			data = append(data, text)
		}
		if line == "\n" && data != nil {
			seen, data = append(seen, strings.Join(data, "\n")), nil
		}
	}
	return seen
}

func TestLogSources(t *testing.T) {
	s := newServer(t)
	logs := "/vms/" + knownVM + "/logs?source="
	reply := s.call(t, "GET", logs+"vmm&tail=3&follow=true", "")
	if wantStatus(t, reply, 200); string(reply.body) != "qemu: 3 lines, follow true\n" {
		t.Errorf("the VMM's log is %q", reply.body)
	}
	for _, follow := range []string{"", "&follow=true"} {
		reply = s.call(t, "GET", logs+"cloud-init"+follow, "")
		if wantStatus(t, reply, 404); reply.problem(t).Code != "cloud_init_log_not_found" || reply.problem(t).Hint == "" {
			t.Errorf("without cloud-init: %s", reply.body)
		}
	}
	s.guest.put(t, "var/log/cloud-init-output.log", "one\ntwo\n")
	reply = s.call(t, "GET", logs+"cloud-init&tail=1", "")
	if wantStatus(t, reply, 200); string(reply.body) != "two\n" {
		t.Errorf("cloud-init's log is %q", reply.body)
	}
	wantStatus(t, s.call(t, "GET", logs+"syslog", ""), 400)
}

func TestLogsSince(t *testing.T) {
	s := newServer(t)
	logs := "/vms/" + knownVM + "/logs?"
	wantStatus(t, s.call(t, "GET", logs+"since=2026-01-02T03:04:05Z&timestamps=true&tail=3", ""), 200)
	if want := (vm.LogQuery{Tail: 3, Since: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Timestamps: true}); s.vms.query != want {
		t.Errorf("asked for %+v", s.vms.query)
	}
	before := time.Now()
	wantStatus(t, s.call(t, "GET", logs+"since=15m", ""), 200)
	if ago := before.Add(-15 * time.Minute); s.vms.query.Since.Before(ago) || s.vms.query.Since.After(time.Now().Add(-15*time.Minute)) {
		t.Errorf("since %s", s.vms.query.Since)
	}
	for query, field := range map[string]string{"since=yesterday": "since", "source=vmm&since=1h": "since", "source=cloud-init&timestamps=true": "timestamps"} {
		if p := s.call(t, "GET", logs+query, "").problem(t); p.Status != 400 || p.Field != field {
			t.Errorf("%s: %+v", query, p)
		}
	}
}

func TestLogAsEvents(t *testing.T) {
	s := newServer(t)
	ended := make(chan struct{})
	s.vms.log = func(ctx context.Context, _ int, _ bool, w io.Writer) error {
		for _, text := range []string{"a\r\nb", "c\n\n", "50%\r100%\n", "\xff", strings.Repeat("x", 20_000)} {
			_, _ = io.WriteString(w, text)
		}
		<-ended
		return nil
	}
	r := s.request(t, "GET", "/vms/"+knownVM+"/logs?follow=true", "")
	r.Header.Set("Accept", "text/event-stream")
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewReader(resp.Body)
	seen := readEvents(t, lines, 5)
	want := []string{"a", "bc", "", "50%\n100%", "\uFFFD" + strings.Repeat("x", 16<<10-1)}
	if !slices.Equal(seen, want) {
		t.Errorf("saw %.40q", seen)
	}
	close(ended)
	if rest := readEvents(t, lines, 1); len(rest[0]) != 20_001-16<<10 {
		t.Errorf("the end of the line has %d bytes", len(rest[0]))
	}
	if _, err := lines.ReadByte(); err != io.EOF {
		t.Errorf("the stream ends with %v", err)
	}
}

// TestConsoleSharing lets several callers watch a console, and one write.
func TestConsoleSharing(t *testing.T) {
	s := newServer(t)
	dir := t.TempDir()
	consoles := console.New(func(string) string { return dir }, 1<<20, slog.New(slog.DiscardHandler))
	host, guest := net.Pipe()
	if err := consoles.Open(knownVM, func(context.Context) (net.Conn, error) { return host, nil }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { consoles.Close(knownVM); _ = guest.Close() })
	s.vms.console = func(readOnly bool) (io.ReadWriteCloser, error) {
		return consoles.Attach(context.Background(), knownVM, readOnly)
	}
	writer := s.open(t, "", nil)
	if _, refusal := s.dial(t, "", nil); !strings.HasPrefix(refusal, "409 ") {
		t.Errorf("a second writer: %q", refusal)
	}
	watchers := []*websocket.Conn{writer, s.open(t, "?readonly=true", nil), s.open(t, "?readonly=true", nil)}
	if _, err := io.WriteString(guest, "login: "); err != nil {
		t.Fatal(err)
	}
	for i, conn := range watchers {
		if _, got, err := conn.Read(t.Context()); err != nil || string(got) != "login: " {
			t.Errorf("watcher %d sees %q, %v", i, got, err)
		}
	}
	if err := writer.Write(t.Context(), websocket.MessageBinary, []byte("root\n")); err != nil {
		t.Fatal(err)
	}
	typed := make([]byte, 5)
	if _, err := io.ReadFull(guest, typed); err != nil || string(typed) != "root\n" {
		t.Errorf("the guest reads %q, %v", typed, err)
	}
	_ = writer.CloseNow() // the connection dies
	deadline := time.Now().Add(10 * time.Second)
	for {
		conn, refusal := s.dial(t, "", nil)
		if refusal == "" {
			_ = conn.CloseNow()
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the writer's place is still taken: %s", refusal)
		}
	}
}
