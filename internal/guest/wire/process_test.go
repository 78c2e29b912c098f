package wire

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/yamux"
)

const testID = "exec_abc123def456"

// fakeProcesses is a fakeHandler with one process, which the test controls.
type fakeProcesses struct {
	*fakeHandler
	next  func(ctx context.Context, idle func() error) (ProcessChunk, error)
	write func(ctx context.Context, p []byte) (int, error)
	list  []Process

	mu       sync.Mutex
	stdin    bytes.Buffer
	ended    bool          // stdin
	detached chan struct{} // receives for each closed attachment
}

func newFakeProcesses() *fakeProcesses {
	s := &fakeProcesses{fakeHandler: newFakeHandler(), detached: make(chan struct{}, 1024)}
	s.next = func(ctx context.Context, idle func() error) (ProcessChunk, error) {
		if err := idle(); err != nil {
			return ProcessChunk{}, err
		}
		<-ctx.Done()
		return ProcessChunk{}, ctx.Err()
	}
	s.write = func(_ context.Context, p []byte) (int, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.stdin.Write(p)
	}
	return s
}

type fakeAttachment struct{ *fakeProcesses }

func (s fakeAttachment) Next(ctx context.Context, idle func() error) (ProcessChunk, error) {
	return s.next(ctx, idle)
}
func (s fakeAttachment) Close() { s.detached <- struct{}{} }

func (s *fakeProcesses) process(spec ProcessSpec) Process { return Process{Spec: spec, PID: 7} }

func (s *fakeProcesses) StartProcess(spec ProcessSpec) (Process, error) { return s.process(spec), nil }

func (s *fakeProcesses) ExecProcess(spec ProcessSpec) (Process, ProcessAttachment, error) {
	return s.process(spec), fakeAttachment{s}, nil
}

func (s *fakeProcesses) AttachProcess(id string, _ int64) (Process, ProcessAttachment, error) {
	return s.process(ProcessSpec{ID: id}), fakeAttachment{s}, nil
}

func (s *fakeProcesses) Processes() []Process { return s.list }

func (s *fakeProcesses) Process(id string) (Process, error) {
	if id != testID {
		return Process{}, Refuse(CodeNoProcess, "no process %s", id)
	}
	return s.process(ProcessSpec{ID: id}), nil
}

func (s *fakeProcesses) WriteProcess(ctx context.Context, _ string, p []byte) (int, error) {
	return s.write(ctx, p)
}

func (s *fakeProcesses) EndProcessStdin(context.Context, string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	return nil
}

func (s *fakeProcesses) SignalProcess(_, name string) error {
	return Refuse(CodeSignal, "no signal %s", name)
}

func (s *fakeProcesses) ResizeProcess(_ string, size Terminal) error {
	return Refuse(CodeNoTerminal, "%d", size.Rows)
}

func (s *fakeProcesses) CloseProcessOutput(_ string, stderr bool) error {
	return Refuse(CodeFailed, "closed, stderr %t", stderr)
}

func (s *fakeProcesses) RemoveProcess(string) error { return errors.New("stuck") }

func (s *fakeProcesses) typed() (text string, ended bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stdin.String(), s.ended
}

func chunks(given ...ProcessChunk) func(context.Context, func() error) (ProcessChunk, error) {
	return func(context.Context, func() error) (ProcessChunk, error) {
		c := given[0]
		given = given[1:]
		return c, nil
	}
}

// connect connects a client to a handler with these timeouts.
func connect(t *testing.T, h Handler, limits times) (*Client, func()) {
	t.Helper()
	host, guest := net.Pipe()
	served := make(chan struct{})
	go func() {
		defer close(served)
		if server, err := Accept(guest); err == nil {
			server.times = limits
			_ = server.Run(context.Background(), h)
		}
	}()
	c, err := Connect(t.Context(), host)
	if err != nil {
		t.Fatal(err)
	}
	c.times = limits
	return c, func() {
		_ = c.Close()
		<-served
	}
}

func requireRefusal(t *testing.T, err error, code string) {
	t.Helper()
	var refused *RemoteError
	if !errors.As(err, &refused) || refused.Code != code {
		t.Errorf("got %v, want an error with code %s", err, code)
	}
}

func TestEachProcessOperationIsAnswered(t *testing.T) {
	s := newFakeProcesses()
	s.list = []Process{{Spec: ProcessSpec{ID: testID, Argv: []string{"a"}}}, {PID: 3}}
	c, disconnect := connect(t, s, defaultTimes)
	defer disconnect()
	ctx := t.Context()
	if p, err := c.StartProcess(ctx, ProcessSpec{ID: testID, Shell: "x"}); err != nil || p.PID != 7 || p.Spec.Shell != "x" {
		t.Errorf("start: %+v, %v", p, err)
	}
	if p, err := c.Process(ctx, testID); err != nil || p.Spec.ID != testID {
		t.Errorf("get: %+v, %v", p, err)
	}
	if all, err := c.Processes(ctx); err != nil || len(all) != 2 || all[0].Spec.Argv[0] != "a" || all[1].PID != 3 {
		t.Errorf("list: %+v, %v", all, err)
	}
	_, err := c.StartProcess(ctx, ProcessSpec{ID: "exec_../../etc/pa", Shell: "x"})
	requireRefusal(t, err, CodeInvalid)
	_, err = c.Process(ctx, "exec_x")
	requireRefusal(t, err, CodeNoProcess)
	requireRefusal(t, c.SignalProcess(ctx, testID, "X"), CodeSignal)
	requireRefusal(t, c.ResizeProcess(ctx, testID, Terminal{Rows: 1}), CodeNoTerminal)
	requireRefusal(t, c.RemoveProcess(ctx, testID), CodeFailed)
	if err := c.CloseProcessOutput(ctx, testID, true); err == nil || !strings.Contains(err.Error(), "stderr true") {
		t.Errorf("close of stderr: %v", err)
	}
	requireRefusal(t, c.call(ctx, OpResizeProcess, ProcessArgs{ID: testID}, nil), CodeInvalid)
	requireRefusal(t, c.call(ctx, "process.fly", nil, nil), CodeUnknownOp)
}

func TestProcessesAreUnknownToAnOldAgent(t *testing.T) {
	c, disconnect := connect(t, newFakeHandler(), defaultTimes)
	defer disconnect()
	_, _, err := c.Exec(t.Context(), ProcessSpec{ID: testID})
	requireRefusal(t, err, CodeUnknownOp)
}

func TestChunksArriveInOrder(t *testing.T) {
	s := newFakeProcesses()
	big := bytes.Repeat([]byte("x"), MaxFrame)
	s.next = chunks(
		ProcessChunk{Data: big}, ProcessChunk{Data: big}, ProcessChunk{Stderr: true, Data: []byte("e")},
		ProcessChunk{Lost: 1 << 40}, ProcessChunk{Data: []byte("o")}, ProcessChunk{Exit: &ProcessExit{Code: 3, Signal: "S", TimedOut: true, At: 9}},
	)
	c, disconnect := connect(t, s, defaultTimes)
	defer disconnect()
	p, stream, err := c.Exec(t.Context(), ProcessSpec{ID: testID})
	if err != nil || p.PID != 7 {
		t.Fatal(p, err)
	}
	defer func() { _ = stream.Close() }()
	var text strings.Builder
	for exited := false; !exited; {
		chunk, err := stream.Next()
		switch {
		case err != nil:
			t.Fatal(err)
		case chunk.Exit != nil:
			exited = true
			if *chunk.Exit != (ProcessExit{Code: 3, Signal: "S", TimedOut: true, At: 9}) {
				t.Errorf("got %+v", chunk.Exit)
			}
		case chunk.Lost > 0:
			text.WriteString("(lost)")
		case chunk.Stderr:
			text.WriteString("2:")
		}
		text.Write(chunk.Data)
	}
	if want := string(big) + string(big) + "2:e(lost)o"; text.String() != want {
		t.Errorf("got %d bytes that end with %q", text.Len(), text.String()[max(0, text.Len()-20):])
	}
	<-s.detached
	if _, err := stream.Next(); !errors.Is(err, ErrDetached) {
		t.Errorf("after the end: %v", err)
	}
}

func TestStdinArrives(t *testing.T) {
	s := newFakeProcesses()
	c, disconnect := connect(t, s, defaultTimes)
	defer disconnect()
	big := strings.Repeat("0123456789", 100<<10)
	if err := c.WriteProcess(t.Context(), testID, []byte(big), false); err != nil {
		t.Fatal(err)
	}
	if got, ended := s.typed(); got != big || ended {
		t.Errorf("%d bytes arrived, ended: %v", len(got), ended)
	}
	if err := c.WriteProcess(t.Context(), testID, nil, true); err != nil {
		t.Fatal(err)
	}
	if _, ended := s.typed(); !ended {
		t.Error("the end did not arrive")
	}
	requireRefusal(t, c.WriteProcess(t.Context(), "exec_none", nil, true), CodeNoProcess)
}

func TestStdinThatIsClosed(t *testing.T) {
	s := newFakeProcesses()
	s.write = func(context.Context, []byte) (int, error) { return 0, errNoStdin }
	c, disconnect := connect(t, s, defaultTimes)
	defer disconnect()
	requireRefusal(t, c.WriteProcess(t.Context(), testID, make([]byte, 1<<20), false), CodeStdinClosed)
	_, stream, err := c.Exec(t.Context(), ProcessSpec{ID: testID})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Write([]byte("x")); err != nil {
		t.Errorf("before it is known: %v", err)
	}
	nextEnded := make(chan struct{})
	go func() {
		defer close(nextEnded)
		_, _ = stream.Next() // until it is closed below
	}()
	for err == nil {
		_, err = stream.Write([]byte("y"))
	}
	requireRefusal(t, err, CodeStdinClosed)
	_ = stream.Close()
	<-nextEnded
}

// shortTimes is for tests that await a timeout.
var shortTimes = times{answer: 400 * time.Millisecond, stall: 200 * time.Millisecond, busy: 50 * time.Millisecond}

// TestReaderThatReadsNothingIsDetached has a process that never stops writing.
func TestReaderThatReadsNothingIsDetached(t *testing.T) {
	s := newFakeProcesses()
	s.next = func(context.Context, func() error) (ProcessChunk, error) {
		return ProcessChunk{Data: make([]byte, MaxFrame)}, nil
	}
	c, disconnect := connect(t, s, shortTimes)
	defer disconnect()
	_, stream, err := c.Exec(t.Context(), ProcessSpec{ID: testID})
	if err != nil {
		t.Fatal(err)
	}
	<-s.detached
	for err == nil {
		_, err = stream.Next()
	}
	if !errors.Is(err, ErrDetached) {
		t.Errorf("the host sees %v", err)
	}
	_ = stream.Close()
}

func untilDone(ctx context.Context, _ []byte) (int, error) {
	<-ctx.Done()
	return 0, ctx.Err()
}

// TestCloseByTheHostIsNoticed closes the stream while its stdin waits for the process.
func TestCloseByTheHostIsNoticed(t *testing.T) {
	s := newFakeProcesses()
	writing := make(chan struct{}, 1024)
	s.write = func(ctx context.Context, p []byte) (int, error) {
		writing <- struct{}{}
		return untilDone(ctx, p)
	}
	c, disconnect := connect(t, s, shortTimes)
	defer disconnect()
	_, stream, err := c.Exec(t.Context(), ProcessSpec{ID: testID})
	if err != nil {
		t.Fatal(err)
	}
	wrote := make(chan error, 1)
	go func() {
		_, err := stream.Write(make([]byte, 1<<20))
		wrote <- err
	}()
	<-writing
	began := time.Now()
	_ = stream.Close()
	<-s.detached
	if took := time.Since(began); took > hostTimeout+2*time.Second {
		t.Errorf("it took %v", took)
	}
	if err := <-wrote; err == nil {
		t.Error("the write succeeded")
	}
}

// TestWriteMayWaitForTheProcess waits longer than an agent may take to answer.
func TestWriteMayWaitForTheProcess(t *testing.T) {
	s := newFakeProcesses()
	s.write = untilDone
	c, disconnect := connect(t, s, shortTimes)
	defer disconnect()
	ctx, cancel := context.WithTimeout(t.Context(), 2*shortTimes.answer)
	defer cancel()
	if err := c.WriteProcess(ctx, testID, make([]byte, 1<<20), false); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("it ended with %v", err)
	}
}

// TestCloseEndsARead closes streams that the agent does not close.
func TestCloseEndsARead(t *testing.T) {
	s := newFakeProcesses()
	never := make(chan struct{})
	s.next = func(_ context.Context, idle func() error) (ProcessChunk, error) {
		_ = idle()
		<-never
		return ProcessChunk{}, errors.New("too late")
	}
	c, disconnect := connect(t, s, defaultTimes)
	defer disconnect()
	defer close(never)
	for range 20 {
		_, stream, err := c.Exec(t.Context(), ProcessSpec{ID: testID})
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		ended := make(chan error, 1)
		go func() {
			_, err := stream.Next()
			ended <- err
		}()
		_ = stream.Close()
		if err := <-ended; err == nil || time.Since(began) > hostTimeout/2 {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
	}
}

func TestAttachedStreamEndsWithItsContext(t *testing.T) {
	c, disconnect := connect(t, newFakeProcesses(), defaultTimes)
	defer disconnect()
	ctx, cancel := context.WithCancel(t.Context())
	_, stream, err := c.AttachProcess(ctx, testID, 0)
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(10*time.Millisecond, cancel)
	if _, err := stream.Next(); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	_ = stream.Close()
}

// TestRequestsAreLimited uses all slots of attachments: other requests are still served.
func TestRequestsAreLimited(t *testing.T) {
	s := newFakeProcesses()
	c, disconnect := connect(t, s, defaultTimes)
	defer disconnect()
	var streams []*ProcessStream
	for range maxLong {
		_, stream, err := c.AttachProcess(t.Context(), testID, 0)
		if err != nil {
			t.Fatal(err)
		}
		streams = append(streams, stream)
	}
	_, _, err := c.AttachProcess(t.Context(), testID, 0)
	if !errors.Is(err, ErrBusy) {
		t.Errorf("one too many: %v", err)
	}
	if _, err := c.Process(t.Context(), testID); err != nil {
		t.Errorf("another request: %v", err)
	}
	for _, stream := range streams {
		_ = stream.Close()
		<-s.detached
	}
	for errors.Is(err, ErrBusy) { // until the agent has closed its side
		var stream *ProcessStream
		if _, stream, err = c.AttachProcess(t.Context(), testID, 0); err == nil {
			_ = stream.Close()
		}
	}
	if err != nil {
		t.Error(err)
	}
}

// TestShortRequestsAreLimited uses all slots: a further request does not wait for one.
func TestShortRequestsAreLimited(t *testing.T) {
	s := blocked{newFakeProcesses(), make(chan struct{})}
	c, disconnect := connect(t, s, defaultTimes)
	defer disconnect()
	answered := make(chan error, maxRequests)
	for range maxRequests {
		go func() {
			_, err := c.Process(t.Context(), testID)
			answered <- err
		}()
	}
	for len(c.slots) < maxRequests {
		select {
		case err := <-answered:
			t.Fatal(err)
		case <-time.After(time.Millisecond):
		}
	}
	if _, err := c.Hello(t.Context()); !errors.Is(err, ErrBusy) {
		t.Errorf("one request too many: %v", err)
	}
	close(s.release)
	for range maxRequests {
		requireRefusal(t, <-answered, CodeFailed)
	}
}

func TestConcurrentListsAreLimited(t *testing.T) {
	s := blocked{newFakeProcesses(), make(chan struct{})}
	c, disconnect := connect(t, s, defaultTimes)
	defer disconnect()
	answered := make(chan error, maxLists)
	for range maxLists {
		go func() {
			_, err := c.Processes(t.Context())
			answered <- err
		}()
	}
	for len(c.listSlots) < maxLists {
		select {
		case err := <-answered:
			t.Fatal(err)
		case <-time.After(time.Millisecond):
		}
	}
	if _, err := c.Processes(t.Context()); !errors.Is(err, ErrBusy) {
		t.Errorf("one list too many: %v", err)
	}
	close(s.release)
	for range maxLists {
		if err := <-answered; err != nil {
			t.Error(err)
		}
	}
}

// blocked answers no request about processes until it is released.
type blocked struct {
	*fakeProcesses
	release chan struct{}
}

func (s blocked) ExecProcess(ProcessSpec) (Process, ProcessAttachment, error) {
	<-s.release
	return Process{}, nil, errors.New("too late")
}

func (s blocked) Processes() []Process {
	<-s.release
	return nil
}

func (s blocked) Process(string) (Process, error) {
	<-s.release
	return Process{}, errors.New("too late")
}

// TestAgentThatDoesNotAnswerTimesOut has an agent that only keeps the session alive.
func TestAgentThatDoesNotAnswerTimesOut(t *testing.T) {
	s := blocked{newFakeProcesses(), make(chan struct{})}
	c, disconnect := connect(t, s, shortTimes)
	defer disconnect()
	defer close(s.release)
	if _, _, err := c.Exec(t.Context(), ProcessSpec{ID: testID}); !errors.Is(err, yamux.ErrTimeout) {
		t.Errorf("exec: %v", err)
	}
	if err := c.WriteProcess(t.Context(), testID, []byte("x"), true); !errors.Is(err, yamux.ErrTimeout) {
		t.Errorf("write: %v", err)
	}
}

func TestListsAreLimited(t *testing.T) {
	one, err := appendFrame(nil, frameProcess, []byte(`{}`))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := readProcesses(bytes.NewReader(bytes.Repeat(one, MaxProcesses+1))); !errors.Is(err, errProcessFrame) {
		t.Errorf("a list that is too long gave %v", err)
	}
}

func TestProcessIDs(t *testing.T) {
	for id, valid := range map[string]bool{
		testID: true, "exec_000000000000": true, "": false, "exec_": false, "exec_abc123def45": false, "exec_abc123def4567": false,
		"exec_ABC123def456": false, "exec_../../../etc": false, "vm_ab_abc123def456": false, "exec_abc123def45\n": false,
	} {
		if ValidProcessID(id) != valid {
			t.Errorf("%q: %v", id, !valid)
		}
	}
}

// FuzzProcessStream has a guest that sends any bytes on an attached stream.
func FuzzProcessStream(f *testing.F) {
	for _, c := range []ProcessChunk{{Data: []byte("x")}, {Stderr: true, Data: []byte("y")}, {Lost: 5}, {Exit: &ProcessExit{Code: 1}}} {
		kind, payload, err := c.frame()
		if err != nil {
			f.Fatal(err)
		}
		framed, err := appendFrame(nil, kind, payload)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(framed)
	}
	f.Add([]byte("l\x00\x00\x00\x08\xff\xff\xff\xff\xff\xff\xff\xff"))
	f.Add([]byte("x\x00\x00\x00\x02[]"))
	f.Fuzz(func(t *testing.T, sent []byte) {
		frames := frameReader{r: bytes.NewReader(sent)}
		for {
			kind, payload, err := frames.next()
			if err != nil {
				return
			}
			c, err := parseProcessFrame(kind, payload)
			if err != nil {
				continue
			}
			if c.Lost < 0 || len(c.Data) > MaxFrame || (c.Exit == nil) == (c.Lost == 0 && len(c.Data) == 0) {
				t.Errorf("frame %q %q became %+v", kind, payload, c)
			}
			again, back, err := c.frame()
			if err != nil || again != kind || kind != frameExit && !bytes.Equal(back, payload) {
				t.Errorf("frame %q %q became %q %q, %v", kind, payload, again, back, err)
			}
		}
	})
}

// FuzzProcessList has a guest that sends any bytes as a list.
func FuzzProcessList(f *testing.F) {
	raw, err := json.Marshal(Process{Spec: ProcessSpec{ID: testID}})
	if err != nil {
		f.Fatal(err)
	}
	framed, err := appendFrame(nil, frameProcess, raw)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(append(framed, ".\x00\x00\x00\x00"...))
	f.Fuzz(func(t *testing.T, sent []byte) {
		all, err := readProcesses(io.LimitReader(bytes.NewReader(sent), maxListed))
		if len(all) > MaxProcesses || err == nil && !bytes.Contains(sent, []byte{frameEnd}) {
			t.Errorf("%d processes, %v", len(all), err)
		}
	})
}

// A command may have any bytes, which JSON would change.
func TestCommandsOfAnyBytes(t *testing.T) {
	spec := ProcessSpec{
		ID: testID, Argv: []string{"rm", "caf\xe9.txt", ""}, Shell: "\xff", Dir: "/\xfe", User: "me", Stdin: true,
		Env: map[string]string{"A": "\xe9", "B": "text"}, Timeout: time.Second,
	}
	if toBytes(spec).User != "me" || spec.isText() {
		t.Error("the spec is taken for text")
	}
	encoded, err := json.Marshal(toBytes(spec))
	if err != nil {
		t.Fatal(err)
	}
	for _, op := range []Op{OpExecBytes, OpStartBytes} {
		if got, err := decodeSpec(Request{Op: op, Args: encoded}); err != nil || !reflect.DeepEqual(got, spec) {
			t.Errorf("%s: %+v, %v; want %+v", op, got, err, spec)
		}
	}
}

func TestAnAgentGetsTheBytesOfACommand(t *testing.T) {
	c, done := connect(t, newFakeProcesses(), defaultTimes)
	defer done()
	spec := ProcessSpec{ID: testID, Argv: []string{"rm", "caf\xe9.txt"}}
	started, err := c.StartProcess(t.Context(), spec)
	if err != nil || len(started.Spec.Argv) != 2 {
		t.Errorf("a start gives %+v, %v", started, err)
	}
	executed, stream, err := c.Exec(t.Context(), spec)
	if err != nil || len(executed.Spec.Argv) != 2 {
		t.Fatalf("an exec gives %+v, %v", executed, err)
	}
	if err := stream.Close(); err != nil {
		t.Error(err)
	}
}
