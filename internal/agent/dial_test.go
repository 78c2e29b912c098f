package agent

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"testing"

	"github.com/hatchvm/hatch/internal/guest/wire"
)

func TestDialReachesLoopbackOnly(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	a := New(slog.New(slog.DiscardHandler), "test")
	conn, err := a.Dial(t.Context(), l.Addr().(*net.TCPAddr).Port)
	if err != nil {
		t.Fatal(err)
	}
	served, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(served); err != nil || len(got) > 0 {
		t.Errorf("the end of the writing side came as %q, %v", got, err)
	}
	if err := errors.Join(conn.Close(), served.Close()); err != nil {
		t.Error(err)
	}
}

func TestDialSaysThatNoProgramListens(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	a := New(slog.New(slog.DiscardHandler), "test")
	for range maxDialled + 1 { // a failure keeps no slot
		_, err := a.Dial(t.Context(), port)
		var answer *wire.RemoteError
		if !errors.As(err, &answer) || answer.Code != wire.CodeRefused {
			t.Fatalf("got %v", err)
		}
	}
}

func TestDialIsBounded(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	port := l.Addr().(*net.TCPAddr).Port
	a := New(slog.New(slog.DiscardHandler), "test")
	var open []wire.DialConn
	for range maxDialled {
		conn, err := a.Dial(t.Context(), port)
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, conn)
	}
	_, err = a.Dial(t.Context(), port)
	var answer *wire.RemoteError
	if !errors.As(err, &answer) || answer.Code != wire.CodeBusy {
		t.Errorf("one more than %d: %v", maxDialled, err)
	}
	for range 2 { // closing twice gives one slot back
		_ = open[0].Close()
	}
	again, err := a.Dial(t.Context(), port)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Dial(t.Context(), port); !errors.As(err, &answer) || answer.Code != wire.CodeBusy {
		t.Errorf("two slots for one connection: %v", err)
	}
	for _, conn := range append(open[1:], again) {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	}
}
