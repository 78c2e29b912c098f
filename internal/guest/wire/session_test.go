package wire

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/yamux"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeHandler is a Handler whose states the test sends.
type fakeHandler struct {
	states   chan Status
	begun    chan ShutdownArgs
	shutdown error
	dial     func(port int) (DialConn, error)
}

func newFakeHandler() *fakeHandler {
	return &fakeHandler{states: make(chan Status, 16), begun: make(chan ShutdownArgs, 1)}
}

func (d *fakeHandler) Hello() Hello   { return Hello{Agent: "v1", Versions: []int{1}, BootID: "b"} }
func (d *fakeHandler) Status() Status { return Status{CloudInit: CloudInit{Status: CloudInitDone}} }

func (d *fakeHandler) Watch(ctx context.Context, report func(Status) error) error {
	for {
		select {
		case st := <-d.states:
			if err := report(st); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (d *fakeHandler) Shutdown(_ context.Context, args ShutdownArgs) (func(), error) {
	return func() { d.begun <- args }, d.shutdown
}

func (d *fakeHandler) Usage() (Usage, error) {
	return Usage{UptimeMillis: 1, Load: [3]float64{0.5}}, nil
}

func (d *fakeHandler) Activity() Activity { return Activity{KeepAwakeMillis: 5, Commands: 2} }

func (d *fakeHandler) Dial(_ context.Context, port int) (DialConn, error) { return d.dial(port) }

// connectTo connects a client to a handler.
func connectTo(t *testing.T, d Handler) (*Client, <-chan error) {
	t.Helper()
	host, guest := net.Pipe()
	served := make(chan error, 1)
	go func() {
		server, err := Accept(guest)
		if err == nil {
			err = server.Run(context.Background(), d)
		}
		served <- err
	}()
	c, err := Connect(t.Context(), host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c, served
}

func TestEachOperationIsAnswered(t *testing.T) {
	d := newFakeHandler()
	c, _ := connectTo(t, d)
	ctx := t.Context()
	if h, err := c.Hello(ctx); err != nil || !reflect.DeepEqual(h, d.Hello()) {
		t.Errorf("hello: %+v, %v", h, err)
	}
	if st, err := c.Status(ctx); err != nil || !reflect.DeepEqual(st, d.Status()) {
		t.Errorf("status: %+v, %v", st, err)
	}
	if u, err := c.Usage(ctx); err != nil || u != (Usage{UptimeMillis: 1, Load: [3]float64{0.5}}) {
		t.Errorf("usage: %+v, %v", u, err)
	}
	if a, err := c.Activity(ctx); err != nil || a != d.Activity() {
		t.Errorf("activity: %+v, %v", a, err)
	}
	if err := c.Shutdown(ctx, true); err != nil {
		t.Error(err)
	}
	if args := <-d.begun; !args.Reboot {
		t.Error("a reboot became a power-off")
	}
	err := c.call(ctx, "fly", nil, nil)
	var refused *RemoteError
	if !errors.As(err, &refused) || refused.Code != CodeUnknownOp {
		t.Errorf("an unknown operation gave %v", err)
	}
}

func TestShutdownThatFailsDoesNotBegin(t *testing.T) {
	d := newFakeHandler()
	d.shutdown = errors.New("init is stuck")
	c, _ := connectTo(t, d)
	err := c.Shutdown(t.Context(), false)
	var refused *RemoteError
	if !errors.As(err, &refused) || refused.Code != CodeFailed || !strings.Contains(refused.Message, "stuck") {
		t.Errorf("got %v", err)
	}
	if len(d.begun) > 0 {
		t.Error("it was begun")
	}
}

func TestWatchReportsInOrderUntilCancelled(t *testing.T) {
	d := newFakeHandler()
	c, _ := connectTo(t, d)
	states := []string{CloudInitRunning, CloudInitError, CloudInitDone}
	for _, s := range states {
		d.states <- Status{CloudInit: CloudInit{Status: s}}
	}
	ctx, cancel := context.WithCancel(t.Context())
	var seen []string
	err := c.Watch(ctx, func(st Status) error {
		if seen = append(seen, st.CloudInit.Status); len(seen) == len(states) {
			cancel()
		}
		return nil
	})
	if !errors.Is(err, context.Canceled) || !reflect.DeepEqual(seen, states) {
		t.Errorf("saw %v, %v", seen, err)
	}
	if _, err := c.Hello(t.Context()); err != nil {
		t.Errorf("the session did not outlive the watch: %v", err)
	}
}

func TestSessionEndsOnBothSides(t *testing.T) {
	c, served := connectTo(t, newFakeHandler())
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-served; err == nil {
		t.Error("the agent's session ended without an error")
	}
	<-c.Lost()
	if _, err := c.Hello(t.Context()); err == nil {
		t.Error("a closed session answers")
	}
}

// TestOldBytesAreDropped starts a session on a connection with bytes of an earlier one.
func TestOldBytesAreDropped(t *testing.T) {
	old := handshakeLine{wordAck, 1, newNonce()}.String() + handshakeLine{wordGo, 1, newNonce()}.String() +
		"half a frame \x00\x01\x02" + strings.Repeat("x", 3*lineLimit)
	host, guest := net.Pipe()
	go func() {
		_, _ = io.WriteString(guest, old)
		if server, err := Accept(guest); err == nil {
			_ = server.Run(context.Background(), newFakeHandler())
		}
	}()
	c, err := Connect(t.Context(), host)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if _, err := c.Hello(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestSyncIsRepeatedUntilAnswered(t *testing.T) {
	host, guest := net.Pipe()
	go func() {
		lost := make([]byte, len(handshakeLine{wordSync, Version, newNonce()}.String()))
		_, _ = io.ReadFull(guest, lost)
		if server, err := Accept(guest); err == nil {
			_ = server.Run(context.Background(), newFakeHandler())
		}
	}()
	c, err := Connect(t.Context(), host)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
}

func TestConnectEndsWithItsContext(t *testing.T) {
	host, guest := net.Pipe()
	defer func() { _ = guest.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := Connect(ctx, host); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

func TestNewerHostUsesTheAgentsVersion(t *testing.T) {
	host, guest := net.Pipe()
	defer func() { _ = host.Close() }()
	got := make(chan int, 1)
	go func() {
		version, _, err := answer(guest)
		if err != nil {
			t.Error(err)
		}
		got <- version
	}()
	nonce := newNonce()
	lines := &lineReader{buf: bufio.NewReader(host)}
	send := func(l handshakeLine) {
		if _, err := io.WriteString(host, l.String()); err != nil {
			t.Error(err)
		}
	}
	go send(handshakeLine{wordSync, 7, nonce})
	ack, err := lines.await(wordAck, nonce)
	if err != nil || ack.version != Version {
		t.Fatalf("ack %+v, %v", ack, err)
	}
	go send(handshakeLine{wordStart, ack.version, nonce})
	if _, err := lines.await(wordGo, nonce); err != nil {
		t.Fatal(err)
	}
	if v := <-got; v != Version {
		t.Errorf("the agent speaks version %d", v)
	}
}

func TestMessagesAreLimited(t *testing.T) {
	var v any
	if err := readMessage(strings.NewReader("\x00\x01\x00\x01"), &v); !errors.Is(err, errTooLarge) {
		t.Errorf("a message of 64 KiB and a byte gave %v", err)
	}
	if err := writeMessage(io.Discard, strings.Repeat("x", maxMessage)); !errors.Is(err, errTooLarge) {
		t.Errorf("writing one gave %v", err)
	}
	big := Request{Op: "x", Args: json.RawMessage(`"` + strings.Repeat("x", maxMessage-100) + `"`)}
	r, w := io.Pipe()
	go func() { _ = w.CloseWithError(writeMessage(w, big)) }()
	var back Request
	if err := readMessage(r, &back); err != nil || !reflect.DeepEqual(big, back) {
		t.Errorf("the largest message does not pass: %v", err)
	}
}

// A guest that is reset stops reading, and its port fills up. A request must end in time
// nevertheless, no matter how much of it the guest has read.
func TestRequestsToAGuestThatReadsNothingEndInTime(t *testing.T) {
	for _, read := range []int{0, headerSize} { // nothing, or the opening of a stream
		host, guest := net.Pipe()
		stuck := make(chan error, 1)
		go func() {
			_, err := Accept(guest)
			if err == nil {
				_, err = io.ReadFull(guest, make([]byte, read))
			}
			stuck <- err
		}()
		c, err := Connect(t.Context(), host)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		began := time.Now()
		if _, err := c.Usage(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("after %d bytes were read it took %v", read, took)
		}
		cancel()
		if err := errors.Join(c.Close(), <-stuck); err != nil {
			t.Error(err)
		}
	}
}

// TestLargeRequestsToAGuestThatReadsNoneEndInTime sends more than a stream's window, with
// a context without a deadline, in a session that stays alive.
func TestLargeRequestsToAGuestThatReadsNoneEndInTime(t *testing.T) {
	host, guest := net.Pipe()
	served := make(chan error, 1)
	go func() {
		server, err := Accept(guest)
		if err == nil {
			err = acceptOnly(server)
		}
		served <- err
	}()
	c, err := Connect(t.Context(), host)
	if err != nil {
		t.Fatal(err)
	}
	c.times.answer = 100 * time.Millisecond
	asked := make(chan error, 1)
	go func() {
		_, _, err := c.Exec(context.Background(), ProcessSpec{ID: "exec_000000000000", Shell: strings.Repeat("x", 512<<10)})
		asked <- err
	}()
	select {
	case err := <-asked:
		if !errors.Is(err, yamux.ErrTimeout) {
			t.Errorf("got %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Error("the request does not end")
	}
	if err := errors.Join(c.Close(), <-served); err != nil {
		t.Error(err)
	}
}

// acceptOnly accepts streams and reads none, until the session ends.
func acceptOnly(s *Server) error {
	session, err := yamux.Server(s.conn, config(agentPing, agentTimeout))
	if err != nil {
		return err
	}
	for err == nil {
		_, err = session.AcceptStream()
	}
	return session.Close()
}

func TestFrameIsOneWrite(t *testing.T) {
	var writes []string
	b := &buffered{conn: nopCloser{writerFunc(func(p []byte) (int, error) {
		writes = append(writes, string(p))
		return len(p), nil
	})}}
	data, update := string(frame(typeData, 0, 1, 5)), string(frame(1, 0, 1, 9))
	empty, lookalike := string(frame(typeData, 4, 1, 0)), string(frame(typeData, 0, 1, 12))
	for _, p := range []string{update, data, "hello", empty, lookalike, lookalike, update} {
		if n, err := b.Write([]byte(p)); n != len(p) || err != nil {
			t.Fatal(n, err)
		}
	}
	want := []string{update, data + "hello", empty, lookalike + lookalike, update}
	if !reflect.DeepEqual(writes, want) {
		t.Errorf("got %q, want %q", writes, want)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }
