package wire

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"testing/iotest"
	"time"
)

// listen serves each connection to a port of the test's host with serve, and returns a
// function that dials it as an agent does.
func listen(t *testing.T, serve func(*net.TCPConn)) func(int) (DialConn, error) {
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
				serve(conn.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(func() { _ = l.Close(); served.Wait() })
	return func(int) (DialConn, error) {
		conn, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			return nil, err
		}
		return conn.(*net.TCPConn), nil
	}
}

func dial(t *testing.T, d *fakeHandler) DialConn {
	t.Helper()
	c, _ := connectTo(t, d)
	conn, err := c.Dial(t.Context(), 80)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// TestDialledConnectionIsHalfClosed has a program that answers when its input has ended.
func TestDialledConnectionIsHalfClosed(t *testing.T) {
	d := newFakeHandler()
	d.dial = listen(t, func(conn *net.TCPConn) {
		all, _ := io.ReadAll(conn)
		_, _ = conn.Write(all)
	})
	conn := dial(t, d)
	sent := make([]byte, 3<<20+17)
	_, _ = rand.Read(sent)
	if _, err := conn.Write(sent); err != nil {
		t.Fatal(err)
	}
	if err := conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write([]byte("x")); !errors.Is(err, errWriteEnded) {
		t.Errorf("a write after CloseWrite: %v", err)
	}
	got, err := io.ReadAll(conn)
	if err != nil || !bytes.Equal(got, sent) {
		t.Errorf("received %d bytes of %d, %v", len(got), len(sent), err)
	}
}

// TestDialledConnectionIsHalfClosedByTheGuest has a program that sends nothing, but reads.
func TestDialledConnectionIsHalfClosedByTheGuest(t *testing.T) {
	received := make(chan []byte, 1)
	d := newFakeHandler()
	d.dial = listen(t, func(conn *net.TCPConn) {
		_ = conn.CloseWrite()
		all, _ := io.ReadAll(conn)
		received <- all
	})
	conn := dial(t, d)
	if n, err := conn.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Fatalf("read %d bytes, %v", n, err)
	}
	if _, err := conn.Write([]byte("late")); err != nil {
		t.Fatal(err)
	}
	if err := conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got := <-received; string(got) != "late" {
		t.Errorf("the guest received %q", got)
	}
}

func TestBrokenConnectionIsNotAnEnd(t *testing.T) {
	d := newFakeHandler()
	d.dial = listen(t, func(conn *net.TCPConn) {
		_, _ = conn.Write([]byte("half an ans"))
		_, _ = conn.Read(make([]byte, 1))
		_ = conn.SetLinger(0) // a reset
	})
	conn := dial(t, d)
	buf := make([]byte, 11)
	if _, err := io.ReadFull(conn, buf); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if n, err := conn.Read(buf); n != 0 || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("read %d bytes, %v", n, err)
	}
}

func TestCloseOfADialledConnectionReachesTheGuest(t *testing.T) {
	ended := make(chan error, 1)
	d := newFakeHandler()
	d.dial = listen(t, func(conn *net.TCPConn) {
		_, err := io.Copy(io.Discard, conn)
		ended <- err
	})
	conn := dial(t, d)
	reading := make(chan error, 1)
	go func() {
		_, err := conn.Read(make([]byte, 1))
		reading <- err
	}()
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	_ = within(t, "the guest's program sees the end", ended)
	if err := within(t, "a read ends", reading); err == nil {
		t.Error("a read of a closed connection succeeds")
	}
}

func within[T any](t *testing.T, what string, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(5 * time.Second):
		t.Fatalf("not within 5 s: %s", what)
		panic("unreachable")
	}
}

func TestDialledConnectionHasDeadlines(t *testing.T) {
	d := newFakeHandler()
	d.dial = listen(t, func(conn *net.TCPConn) { _, _ = io.Copy(conn, conn) })
	conn := dial(t, d)
	if err := conn.SetReadDeadline(time.Now().Add(10 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	var timeout net.Error
	if _, err := conn.Read(make([]byte, 1)); !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Fatalf("got %v", err)
	}
	if err := conn.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 1)
	if _, err := conn.Read(buf); err != nil || buf[0] != 'x' {
		t.Errorf("after the deadline: %q, %v", buf, err)
	}
}

func TestErrorsOfDialHaveCodes(t *testing.T) {
	for _, c := range []struct {
		port int
		err  error
		code string
	}{
		{80, &RemoteError{Code: CodeRefused, Message: "no program"}, CodeRefused},
		{80, errors.New("no route"), CodeFailed},
		{0, nil, CodeInvalid},
		{65536, nil, CodeInvalid},
		{-1, nil, CodeInvalid},
	} {
		d := newFakeHandler()
		d.dial = func(int) (DialConn, error) { return nil, c.err }
		client, _ := connectTo(t, d)
		_, err := client.Dial(t.Context(), c.port)
		var refused *RemoteError
		if !errors.As(err, &refused) || refused.Code != c.code {
			t.Errorf("port %d, %v: got %v", c.port, c.err, err)
		}
	}
}

func TestDialEndsWithItsContext(t *testing.T) {
	release := make(chan struct{})
	d := newFakeHandler()
	d.dial = func(int) (DialConn, error) {
		<-release
		return nil, os.ErrDeadlineExceeded
	}
	client, _ := connectTo(t, d)
	defer close(release)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := client.Dial(ctx, 80); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

// streamOf is a stream that reads from a reader.
type streamOf struct {
	net.Conn
	io.Reader
}

func (s streamOf) Read(p []byte) (int, error) { return s.Reader.Read(p) }

func TestInvalidFramesBreakAConnection(t *testing.T) {
	for name, sent := range map[string]string{
		"an empty frame":        "d\x00\x00\x00\x00",
		"a frame that is large": "d\x00\x01\x00\x00",
		"an end with a body":    "e\x00\x00\x00\x01x",
		"another kind":          "x\x00\x00\x00\x01x",
		"half a frame":          "d\x00\x00\x00\x02x",
		"half a header":         "d\x00",
		"nothing":               "",
	} {
		if got, err := io.ReadAll(&framedConn{Conn: streamOf{Reader: bytes.NewReader([]byte(sent))}}); err == nil {
			t.Errorf("%s: %q, without an error", name, got)
		}
	}
}

// FuzzFramedConn reads any bytes from a guest, at once and one by one.
func FuzzFramedConn(f *testing.F) {
	f.Add([]byte("d\x00\x00\x00\x01xe\x00\x00\x00\x00"))
	f.Add([]byte("d\x00\x00\x80\x00"))
	f.Fuzz(func(t *testing.T, sent []byte) {
		whole, wholeErr := io.ReadAll(&framedConn{Conn: streamOf{Reader: bytes.NewReader(sent)}})
		if len(whole) > len(sent) {
			t.Errorf("%d bytes became %d", len(sent), len(whole))
		}
		piecewise, err := io.ReadAll(&framedConn{Conn: streamOf{Reader: iotest.OneByteReader(bytes.NewReader(sent))}})
		if !bytes.Equal(whole, piecewise) || !errors.Is(err, wholeErr) {
			t.Errorf("read at once: %q, %v; byte by byte: %q, %v", whole, wholeErr, piecewise, err)
		}
	})
}
