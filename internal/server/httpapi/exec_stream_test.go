package httpapi_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/coder/websocket"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
	"github.com/hatchvm/hatch/internal/server/httpapi"
)

// execClient is a client that knows no more than the documentation says.
type execClient struct {
	*websocket.Conn
	t      *testing.T
	offset int64
}

func (s *server) dialExec(t *testing.T, path string, change func(http.Header)) (*execClient, string) {
	t.Helper()
	header := http.Header{"Authorization": {"Bearer " + goodKey}}
	if change != nil {
		change(header)
	}
	conn, resp, err := websocket.Dial(t.Context(), s.URL+path, &websocket.DialOptions{HTTPHeader: header}) //nolint:bodyclose // the dialer has read it
	if resp == nil {
		t.Fatal(err)
	}
	if err != nil {
		return nil, fmt.Sprintf("%d %s", resp.StatusCode, resp.Header.Get("Content-Type"))
	}
	t.Cleanup(func() { _ = conn.CloseNow() })
	return &execClient{Conn: conn, t: t}, ""
}

// stream opens a streamed exec with a first message, unless it is empty.
func (s *server) stream(t *testing.T, first string) *execClient {
	t.Helper()
	c, refusal := s.dialExec(t, "/vms/"+knownVM+"/exec", nil)
	if refusal != "" {
		t.Fatal(refusal)
	}
	if first != "" {
		c.say(first)
	}
	return c
}

func (c *execClient) say(text string) {
	c.t.Helper()
	if err := c.Write(c.t.Context(), websocket.MessageText, []byte(text)); err != nil {
		c.t.Fatal(err)
	}
}

func (c *execClient) stdin(data string) {
	c.t.Helper()
	if err := c.Write(c.t.Context(), websocket.MessageBinary, append([]byte{api.ChannelStdin}, data...)); err != nil {
		c.t.Fatal(err)
	}
}

// hear returns the next message: a text message, or the channel and bytes of a
// binary one.
func (c *execClient) hear() (m api.ExecMessage, channel byte, data string) {
	c.t.Helper()
	kind, message, err := c.Read(c.t.Context())
	if err != nil {
		c.t.Fatal(err)
	}
	if kind == websocket.MessageBinary {
		c.offset += int64(len(message) - 1)
		return m, message[0], string(message[1:])
	}
	if err := json.Unmarshal(message, &m); err != nil {
		c.t.Fatalf("%s: %v", message, err)
	}
	if m.Offset != nil {
		c.offset = *m.Offset
	}
	if m.Type == api.ExecOutputLost {
		c.offset += m.Bytes
	}
	return m, 0, ""
}

// await returns the next message of a type, past all others.
func (c *execClient) await(kind string) api.ExecMessage {
	c.t.Helper()
	for {
		if m, _, _ := c.hear(); m.Type == kind {
			return m
		}
	}
}

// awaitOutput reads until the output since the last call contains want.
func (c *execClient) awaitOutput(want string) {
	c.t.Helper()
	var all string
	for !strings.Contains(all, want) {
		m, _, data := c.hear()
		if m.Type == api.ExecEnded || m.Type == api.ExecError {
			c.t.Fatalf("after %q it says %+v", all, m)
		}
		all += data
	}
}

// wantClosed reads until the connection is closed with the wanted status.
func (c *execClient) wantClosed(status websocket.StatusCode) {
	c.t.Helper()
	for {
		_, message, err := c.Read(c.t.Context())
		if err == nil {
			c.t.Logf("left: %.100q", message)
			continue
		}
		if websocket.CloseStatus(err) != status {
			c.t.Errorf("it is closed with %v, not %d", err, status)
		}
		return
	}
}

func TestStreamExec(t *testing.T) {
	s := newServer(t)
	c := s.stream(t, `{"command":"echo out; echo err >&2; cat; exit 3","stdin":"first ","stdin_open":true}`)
	if m := c.await(api.ExecStarted); m.Exec == nil || m.Exec.State != api.ExecRunning || m.Offset == nil || *m.Offset != 0 {
		t.Errorf("it starts with %+v", m)
	}
	if _, channel, data := c.hear(); channel != api.ChannelStdout || data != "out\n" {
		t.Errorf("on %d: %q", channel, data)
	}
	if _, channel, data := c.hear(); channel != api.ChannelStderr || data != "err\n" {
		t.Errorf("on %d: %q", channel, data)
	}
	c.awaitOutput("first ")
	c.stdin("then\x00\xff")
	if m := c.await(api.ExecStdinTaken); m.Bytes != 6 {
		t.Errorf("%d bytes were taken", m.Bytes)
	}
	c.say(`{"type":"close_stdin"}`)
	if m := c.await(api.ExecEnded); m.ExitCode == nil || *m.ExitCode != 3 || m.Signal != "" || m.TimedOut {
		t.Errorf("it ends with %+v", m)
	}
	c.wantClosed(websocket.StatusNormalClosure)
	if want := int64(len("out\nerr\nfirst then..")); c.offset != want {
		t.Errorf("the client is at %d, not %d", c.offset, want)
	}
}

func TestStreamWithoutStdin(t *testing.T) {
	s := newServer(t)
	c := s.stream(t, `{"command":"cat; sleep 60","stdin":"whole"}`)
	c.awaitOutput("whole")
	c.stdin("more")
	c.await(api.ExecStdinClosed)
	c.stdin("dropped") // and ends nothing
	c.say(`{"type":"signal","signal":"TERM"}`)
	if m := c.await(api.ExecEnded); *m.ExitCode != 143 || m.Signal != "SIGTERM" {
		t.Errorf("it ends with %+v", m)
	}
}

func TestStreamTerminal(t *testing.T) {
	s := newServer(t)
	c := s.stream(t, `{"command":["stty","wait"],"tty":{"rows":24,"cols":80},"stdin_open":true}`)
	c.awaitOutput("24 80\r\n")
	c.say(`{"type":"resize","rows":30,"cols":100}`)
	c.awaitOutput("30 100\r\n")
	for _, bad := range []string{`{"type":"resize","rows":0,"cols":100}`, `{"type":"resize","rows":70000,"cols":1}`, `{"type":"signal","signal":"NOPE"}`} {
		c.say(bad)
		if m := c.await(api.ExecError); m.Code == "" || m.Error == "" {
			t.Errorf("%s: %+v", bad, m)
		}
	}
	c.stdin("\x03")
	if m := c.await(api.ExecEnded); *m.ExitCode != 130 {
		t.Errorf("it ends with %+v", m)
	}
}

// TestSignalPassesStdin sends as much as a client may before an acknowledgement,
// to a process that reads nothing, and then a signal.
func TestSignalPassesStdin(t *testing.T) {
	s := newServer(t)
	c := s.stream(t, `{"command":"sleep 60","stdin_open":true}`)
	c.stdin(strings.Repeat("x", 100<<10))
	c.stdin(strings.Repeat("y", 100<<10))
	c.say(`{"type":"signal","signal":"KILL"}`)
	if m := c.await(api.ExecEnded); *m.ExitCode != 137 {
		t.Errorf("it ends with %+v", m)
	}
	c.wantClosed(websocket.StatusNormalClosure)
}

// TestClosedOutput closes the output of processes that would print for ever.
func TestClosedOutput(t *testing.T) {
	s := newServer(t)
	for message, command := range map[string]string{"close_stdout": "yes", "close_stderr": "yes >&2"} {
		c := s.stream(t, `{"command":"`+command+`"}`)
		c.await(api.ExecStarted)
		c.say(`{"type":"` + message + `"}`)
		if m := c.await(api.ExecEnded); *m.ExitCode != 141 || m.Signal != "SIGPIPE" {
			t.Errorf("after %s it ends with %+v", message, m)
		}
		c.wantClosed(websocket.StatusNormalClosure)
	}
}

// TestAttachExec leaves a process in the midst of its output, and joins it
// again where it was left.
func TestAttachExec(t *testing.T) {
	s := newServer(t)
	c := s.stream(t, `{"command":"echo one; cat; echo two","stdin_open":true}`)
	started := c.await(api.ExecStarted)
	c.awaitOutput("one\n")
	c.leave()
	path := "/vms/" + knownVM + "/execs/" + started.Exec.ID
	wantStatus(t, s.call(t, "POST", path+"/stdin", `{"data":"meanwhile\n"}`), 200)
	again, refusal := s.dialExec(t, fmt.Sprintf("%s/attach?from=%d", path, c.offset), nil)
	if refusal != "" {
		t.Fatal(refusal)
	}
	if m := again.await(api.ExecStarted); *m.Offset != 4 || m.Exec.ID != started.Exec.ID {
		t.Errorf("joined %+v", m)
	}
	if _, _, data := again.hear(); data != "meanwhile\n" {
		t.Errorf("after the first line there is %q", data)
	}
	again.stdin("typed\n")
	again.say(`{"type":"close_stdin"}`)
	again.awaitOutput("two\n")
	again.await(api.ExecEnded)
	again.wantClosed(websocket.StatusNormalClosure)

	late, _ := s.dialExec(t, path+"/attach", nil)
	late.awaitOutput("one\nmeanwhile\ntyped\ntwo\n")
	late.await(api.ExecEnded)
}

func (c *execClient) leave() { _ = c.Close(websocket.StatusNormalClosure, "") }

func TestOutputLost(t *testing.T) {
	s := newServer(t)
	s.processes.Keep = 4
	wantStatus(t, s.call(t, "POST", "/vms/"+knownVM+"/exec", `{"command":"echo ab; echo cd; echo ef","background":true}`), 201)
	s.processes.AwaitRunning(0)
	c, refusal := s.dialExec(t, firstExec+"/attach?from=1", nil)
	if refusal != "" {
		t.Fatal(refusal)
	}
	if m := c.await(api.ExecOutputLost); m.Bytes != 5 {
		t.Errorf("%d bytes are lost", m.Bytes)
	}
	c.awaitOutput("ef\n")
	c.await(api.ExecEnded)
	if c.offset != 9 {
		t.Errorf("the client is at %d", c.offset)
	}
}

// TestStreamOfALostGuest loses the guest; the client gets the status "try again later".
func TestStreamOfALostGuest(t *testing.T) {
	s := newServer(t)
	c := s.stream(t, `{"command":"sleep 60"}`)
	c.await(api.ExecStarted)
	s.processes.SetLost(true)
	if m := c.await(api.ExecError); m.Code != "agent_unavailable" || m.Hint == "" {
		t.Errorf("it says %+v", m)
	}
	c.wantClosed(websocket.StatusTryAgainLater)
	s.processes.SetLost(false)
	again, refusal := s.dialExec(t, firstExec+"/attach", nil)
	if refusal != "" {
		t.Fatal(refusal)
	}
	again.await(api.ExecStarted)
}

// TestSlowClient reads nothing for a while: the process waits, and nothing is
// lost or kept in between.
func TestSlowClient(t *testing.T) {
	s := newServer(t)
	c := s.stream(t, `{"command":"yes"}`)
	c.await(api.ExecStarted)
	for c.offset < 1<<20 {
		_, _, data := c.hear()
		if strings.Trim(data, "y\n") != "" {
			t.Fatalf("it says %.20q", data)
		}
	}
	c.leave()
	wantStatus(t, s.call(t, "DELETE", firstExec, ""), 200)
}

func TestStreamRefusals(t *testing.T) {
	s := newServer(t)
	for first, want := range map[string]string{
		`{`:                                 "invalid_body",
		`[]`:                                "invalid_body",
		`{}`:                                "invalid_command",
		`{"command":["a",7]}`:               "invalid_command",
		`{"command":"a","comand":"b"}`:      "unknown_field",
		`{"command":"a","Cwd":"/"}`:         "unknown_field",
		`{"command":"a","timeout_ms":"1s"}`: "invalid_timeout_ms",
		`{"command":"a","cwd":"tmp"}`:       "invalid_cwd",
		`{"command":"a","user":"nemo"}`:     "invalid_user",
		`{"command":"a","background":true}`: "invalid_background",
		`{"command":"a","stdin":"!","stdin_encoding":"base64"}`: "invalid_stdin",
	} {
		c := s.stream(t, first)
		if m, _, _ := c.hear(); m.Type != api.ExecError || m.Code != want || m.Error == "" {
			t.Errorf("%s: %+v", first, m)
		}
		c.wantClosed(websocket.StatusPolicyViolation)
	}
	c := s.stream(t, "")
	c.stdin("binary")
	if m := c.await(api.ExecError); m.Code != "invalid_message" {
		t.Errorf("%+v", m)
	}
	wantNothingStarted(t, s)

	for _, bad := range []string{`{`, `{"type":"start"}`, `{"type":"signal","sig":"TERM"}`} {
		c := s.stream(t, `{"command":"sleep 60"}`)
		c.say(bad)
		if m := c.await(api.ExecError); m.Code != "invalid_message" {
			t.Errorf("%s: %+v", bad, m)
		}
		c.wantClosed(websocket.StatusPolicyViolation)
	}
	for _, bad := range [][]byte{{}, {api.ChannelStdout, 'x'}} {
		c := s.stream(t, `{"command":"sleep 60"}`)
		_ = c.Write(t.Context(), websocket.MessageBinary, bad)
		c.await(api.ExecError)
		c.wantClosed(websocket.StatusPolicyViolation)
	}
	c = s.stream(t, `{"command":"cat","stdin_open":true}`)
	_ = c.Write(t.Context(), websocket.MessageBinary, bytes.Repeat([]byte{0}, 1<<20+1))
	c.wantClosed(websocket.StatusMessageTooBig)

	for name, dial := range map[string]struct {
		path   string
		change func(http.Header)
		status int
	}{
		"no key":                 {"/exec", func(h http.Header) { h.Del("Authorization") }, 401},
		"a page of another site": {"/exec", func(h http.Header) { h.Set("Origin", "https://evil.example") }, 403},
		"an unknown exec":        {"/execs/exec_none/attach", nil, 404},
		"a negative offset":      {"/execs/exec_fake00000001/attach?from=-1", nil, 400},
	} {
		if _, refusal := s.dialExec(t, "/vms/"+knownVM+dial.path, dial.change); refusal != fmt.Sprintf("%d application/problem+json", dial.status) {
			t.Errorf("%s: %q", name, refusal)
		}
	}
}

// TestClientExecOverABadNetwork lets the client read through a network that
// breaks each connection after a while: nothing may be lost or come twice.
func TestClientExecOverABadNetwork(t *testing.T) {
	s := newServer(t)
	s.processes.Keep = 1 << 20
	bad := &badNetwork{Listener: listen(t), to: s.Listener.Addr().String(), after: 6000}
	var ended sync.WaitGroup
	ended.Go(bad.serve)
	t.Cleanup(func() { _ = bad.Close(); ended.Wait() })
	c, err := client.New("http://"+bad.Addr().String(), goodKey)
	if err != nil {
		t.Fatal(err)
	}
	session, err := c.OpenExec(t.Context(), knownVM, api.RunExec{Command: api.Command{Shell: "seq 6000; exit 7"}})
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	var got, want strings.Builder
	exit, err := session.Copy(&got, io.Discard)
	if err != nil || exit.Code != 7 {
		t.Errorf("%+v, %v", exit, err)
	}
	for n := 1; n <= 6000; n++ {
		fmt.Fprintln(&want, n)
	}
	if got.String() != want.String() {
		t.Errorf("%d bytes came of %d", got.Len(), want.Len())
	}
	if n := bad.cut.Load(); n < 3 {
		t.Errorf("only %d connections were broken", n)
	}
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// badNetwork passes connections on, and breaks each once it has answered a
// number of bytes, twice as many each time.
type badNetwork struct {
	net.Listener
	to    string
	after int64
	cut   atomic.Int32
}

func (b *badNetwork) serve() {
	var pairs sync.WaitGroup
	defer pairs.Wait()
	for {
		conn, err := b.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", b.to)
		if err != nil {
			_ = conn.Close()
			continue
		}
		after := b.after
		b.after *= 2
		pairs.Go(func() {
			defer conn.Close()
			defer server.Close()
			if n, _ := io.CopyN(conn, server, after); n == after {
				b.cut.Add(1)
			}
		})
		pairs.Go(func() { _, _ = io.Copy(server, conn) })
	}
}

func wantNothingStarted(t *testing.T, s *server) {
	t.Helper()
	if all := decode[[]api.Exec](t, s.call(t, "GET", "/vms/"+knownVM+"/execs", "")); len(all) != 0 {
		t.Errorf("started are %+v", all)
	}
}

// FuzzStreamExec says anything to the door, as text and as bytes.
func FuzzStreamExec(f *testing.F) {
	s := newServer(f)
	f.Add(`{"command":"true"}`, []byte{0, 'x'})
	f.Add(`{"command":["cat"],"stdin_open":true}`, []byte(`{"type":"close_stdin"}`))
	f.Add(`{"command":"cat","tty":{"rows":1,"cols":1},"stdin_open":true}`, []byte(`{"type":"resize","rows":2,"cols":2}`))
	f.Fuzz(func(t *testing.T, first string, then []byte) {
		c := s.stream(t, first)
		_ = c.Write(t.Context(), websocket.MessageBinary, then)
		_ = c.Write(t.Context(), websocket.MessageText, then)
		_ = c.Close(websocket.StatusNormalClosure, "")
		s.call(t, "GET", "/vms/"+knownVM+"/execs", "") // it still answers, and as documented
	})
}

// TestDisconnectedClientReleasesTheGuest leaves in the middle of an exec, before its
// first message, and in the middle of a file.
func TestDisconnectedClientReleasesTheGuest(t *testing.T) {
	s := newServer(t)
	c := s.stream(t, `{"command":"yes"}`)
	if _, _, err := c.Read(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := s.guest.uses.InUse(); n != 1 {
		t.Errorf("during an exec the guest is in use %d times", n)
	}
	_ = c.CloseNow()
	_ = s.stream(t, "").CloseNow()

	s.guest.put(t, "/large", strings.Repeat("x", 16<<20))
	resp, err := http.DefaultClient.Do(s.request(t, "GET", "/vms/"+knownVM+"/files?path=/large", ""))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(resp.Body, make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	if s.guest.uses.InUse() == 0 {
		t.Error("during a download the guest is not in use")
	}
	_ = resp.Body.Close()
	requireNoUse(t, &s.guest.uses)
	if n := s.guest.uses.Opened(); n != 3 {
		t.Errorf("three requests opened the guest %d times", n)
	}
}

// Large messages take memory as bodies do, until the process has read them.
func TestMessagesInProgressAreBounded(t *testing.T) {
	const mib = 1 << 20
	s := newLimitedServer(t, httpapi.Limits{BodyBytes: 3 * mib}) // 2 MiB for a user
	c := s.stream(t, `{"command":"cat >/dev/null","stdin_open":true}`)
	c.SetReadLimit(-1)
	for range 5 { // nothing of it is left taken
		c.stdin(strings.Repeat("x", mib-1))
		c.await(api.ExecStdinTaken)
	}
	held := s.holdBody(t, goodKey, 2*mib)
	c.stdin("small")
	c.await(api.ExecStdinTaken)
	c.stdin(strings.Repeat("x", mib-1))
	if m := c.await(api.ExecError); m.Code != "too_many_bodies" {
		t.Errorf("it says %+v", m)
	}
	c.wantClosed(websocket.StatusTryAgainLater)
	if err := held.Close(); err != nil {
		t.Fatal(err)
	}
}
