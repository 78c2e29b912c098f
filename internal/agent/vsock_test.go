package agent

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/guest/wire"
)

func TestOnlyTheHostIsAccepted(t *testing.T) {
	for _, c := range []struct {
		from unix.Sockaddr
		want bool
	}{
		{&unix.SockaddrVM{CID: unix.VMADDR_CID_HOST}, true},
		{&unix.SockaddrVM{CID: unix.VMADDR_CID_LOCAL}, false},
		{&unix.SockaddrVM{CID: 3}, false},
		{&unix.SockaddrUnix{}, false},
		{nil, false},
	} {
		if got := isHost(c.from); got != c.want {
			t.Errorf("isHost(%+v) = %v", c.from, got)
		}
	}
}

// A hatchd that was killed may leave its connection open: the next one must not wait
// for it.
func TestNewConnectionEndsThePreviousSession(t *testing.T) {
	a := New(slog.New(slog.DiscardHandler), "test")
	defer func() { _ = a.processes.Close() }()
	hosts := make(chan io.ReadWriteCloser)
	ended := make(chan error, 1)
	go func() {
		ended <- a.serveStreams(t.Context(), func() (io.ReadWriteCloser, error) {
			conn, ok := <-hosts
			if !ok {
				return nil, errors.New("no more")
			}
			return conn, nil
		})
	}()
	var last *wire.Client
	for range 3 {
		here, there := net.Pipe()
		hosts <- there
		client, err := wire.Connect(t.Context(), here)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		if _, err := client.Status(ctx); err != nil {
			t.Errorf("the agent does not answer: %v", err)
		}
		if last != nil {
			if _, err := last.Status(ctx); err == nil {
				t.Error("the previous session still answers")
			}
			_ = last.Close()
		}
		cancel()
		last = client
	}
	close(hosts)
	if err := <-ended; err == nil {
		t.Error("serveStreams returned no error")
	}
	_ = last.Close()
}
