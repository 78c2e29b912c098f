package client_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/coder/websocket"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

// execServer is the server's end of one connection of a session.
type execServer struct {
	*websocket.Conn
	t *testing.T
}

// execServers answers each connection of a session with the next of turns.
func execServers(t *testing.T, turns ...func(s *execServer, r *http.Request)) *client.Client {
	t.Helper()
	var turn atomic.Int32
	return connect(t, func(w http.ResponseWriter, r *http.Request) {
		n := int(turn.Add(1)) - 1
		if n >= len(turns) {
			w.Header().Set("Content-Type", "application/problem+json")
			w.WriteHeader(http.StatusNotFound)
			_, _ = io.WriteString(w, `{"error":"there is no such process","code":"process_not_found"}`)
			return
		}
		conn, err := websocket.Accept(w, r, nil)
		if err != nil {
			t.Error(err)
			return
		}
		defer func() { _ = conn.CloseNow() }()
		conn.SetReadLimit(1 << 20)
		turns[n](&execServer{conn, t}, r)
	})
}

func (s *execServer) say(m api.ExecMessage) {
	text, err := json.Marshal(m)
	if err == nil {
		err = s.Write(context.Background(), websocket.MessageText, text)
	}
	if err != nil {
		s.t.Error(err)
	}
}

func (s *execServer) started(offset int64, tty *api.TerminalSize) {
	s.say(api.ExecMessage{Type: api.ExecStarted, Exec: &api.Exec{ID: "exec_1", TTY: tty}, Offset: &offset})
}

func (s *execServer) print(channel byte, data string) {
	if err := s.Write(context.Background(), websocket.MessageBinary, append([]byte{channel}, data...)); err != nil {
		s.t.Error(err)
	}
}

func (s *execServer) exit(code int) {
	s.say(api.ExecMessage{Type: api.ExecEnded, ExitCode: &code})
	_ = s.Close(websocket.StatusNormalClosure, "")
}

func (s *execServer) hear() string {
	_, message, err := s.Read(context.Background())
	if err != nil {
		s.t.Error(err)
	}
	return string(message)
}

// open opens a session on the first connection.
func open(t *testing.T, c *client.Client, body api.RunExec) *client.ExecSession {
	t.Helper()
	s, err := c.OpenExec(t.Context(), "vm_1", body)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func shell(line string) api.RunExec {
	return api.RunExec{Command: api.Command{Shell: line}, StdinOpen: true}
}

func TestExecSession(t *testing.T) {
	c := execServers(t, func(s *execServer, r *http.Request) {
		if first := s.hear(); r.RequestURI != "/vms/vm_1/exec" || first != `{"command":"cat","stdin_open":true}` {
			t.Errorf("%s begins with %s", r.RequestURI, first)
		}
		s.started(0, nil)
		s.print(api.ChannelStdout, "out")
		s.print(api.ChannelStderr, "err")
		if typed := s.hear(); typed != "\x00typed" {
			t.Errorf("it writes %q", typed)
		}
		s.say(api.ExecMessage{Type: api.ExecStdinTaken, Bytes: 5})
		if end := s.hear(); end != `{"type":"close_stdin"}` {
			t.Errorf("it ends with %s", end)
		}
		s.say(api.ExecMessage{Type: api.ExecOutputLost, Bytes: 7})
		s.exit(3)
	})
	s := open(t, c, shell("cat"))
	if n, err := s.Write([]byte("typed")); n != 5 || err != nil {
		t.Fatal(n, err)
	}
	if err := s.CloseStdin(); err != nil {
		t.Fatal(err)
	}
	var out, errs strings.Builder
	exit, err := s.Copy(&out, &errs)
	if exit.Code != 3 || err == nil || !strings.Contains(err.Error(), "7 bytes of output were lost") {
		t.Errorf("%+v, %v", exit, err)
	}
	if out.String() != "out" || errs.String() != "err" {
		t.Errorf("%q, %q", &out, &errs)
	}
	if _, err := s.Next(); !errors.Is(err, io.EOF) {
		t.Errorf("after the end: %v", err)
	}
	if _, err := s.Write([]byte("late")); !errors.Is(err, client.ErrStdinClosed) {
		t.Errorf("written after the end: %v", err)
	}
}

// TestExecSessionAttachesAgain cuts the connection, restarts the server and
// loses the guest, in turn.
func TestExecSessionAttachesAgain(t *testing.T) {
	attached := func(s *execServer, r *http.Request, want string, offset int64) {
		if r.RequestURI != "/vms/vm_1/execs/exec_1/attach?from="+want {
			t.Errorf("it attaches with %s", r.RequestURI)
		}
		s.started(offset, nil)
	}
	c := execServers(t,
		func(s *execServer, _ *http.Request) {
			s.hear()
			s.started(0, nil)
			s.print(api.ChannelStdout, "one ")
			s.hear() // the end of stdin
			if closed := s.hear(); closed != `{"type":"close_stderr"}` {
				t.Errorf("stderr is closed with %s", closed)
			}
			_ = s.CloseNow()
		},
		func(s *execServer, r *http.Request) {
			attached(s, r, "4", 4)
			if again := s.hear() + s.hear(); again != `{"type":"close_stderr"}{"type":"close_stdin"}` {
				t.Errorf("stderr and stdin are not closed again, but %s", again)
			}
			s.say(api.ExecMessage{Type: api.ExecOutputLost, Bytes: 10})
			s.print(api.ChannelStderr, "two ")
			_ = s.Close(websocket.StatusGoingAway, "")
		},
		func(s *execServer, r *http.Request) {
			attached(s, r, "18", 18)
			s.hear()
			s.say(api.ExecMessage{Type: api.ExecError, Error: "no agent answers", Code: "agent_unavailable"})
			_ = s.Close(websocket.StatusTryAgainLater, "")
		},
		func(s *execServer, r *http.Request) {
			attached(s, r, "18", 18)
			s.hear()
			s.print(api.ChannelStdout, "three")
			s.exit(0)
		})
	s := open(t, c, shell("cat"))
	if err := s.CloseStdin(); err != nil {
		t.Fatal(err)
	}
	s.CloseStderr()
	var all strings.Builder
	exit, err := s.Copy(&all, &all)
	if all.String() != "one two three" || exit.Code != 0 || err == nil || !strings.Contains(err.Error(), "10 bytes") {
		t.Errorf("%q, %+v, %v", &all, exit, err)
	}
}

func TestExecSessionOfADeletedExec(t *testing.T) {
	c := execServers(t, func(s *execServer, _ *http.Request) {
		s.hear()
		s.started(0, nil)
		s.print(api.ChannelStdout, "one")
	})
	s := open(t, c, shell("cat"))
	var all strings.Builder
	if _, err := s.Copy(&all, &all); !client.HasCode(err, "process_not_found") || all.String() != "one" {
		t.Errorf("%q, %v", &all, err)
	}
}

// TestExecInputInFlight breaks the connection while input is in flight: it must
// not count as written, except on a terminal.
func TestExecInputInFlight(t *testing.T) {
	for name, tty := range map[string]*api.TerminalSize{"pipe": nil, "terminal": {Rows: 1, Cols: 1}} {
		t.Run(name, func(t *testing.T) {
			c := execServers(t,
				func(s *execServer, _ *http.Request) {
					s.hear()
					s.started(0, tty)
					s.hear()
					_ = s.CloseNow()
				},
				func(s *execServer, _ *http.Request) {
					s.started(0, tty)
					s.print(api.ChannelStdout, "again")
					if tty != nil {
						s.hear()
					}
					s.exit(0)
				})
			s := open(t, c, shell("cat"))
			if _, err := s.Write([]byte("a")); err != nil {
				t.Fatal(err)
			}
			if next, err := s.Next(); err != nil || string(next.Data) != "again" {
				t.Fatalf("%s: %+v, %v", name, next, err)
			}
			_, err := s.Write([]byte("b"))
			if (err == nil) != (tty != nil) || tty == nil && !strings.Contains(err.Error(), "may be lost") {
				t.Errorf("%s: written with %v", name, err)
			}
			if _, err := s.Copy(io.Discard, io.Discard); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
}

// TestExecInputLostBehindItsEnd breaks the connection once all input is
// in flight: the command must not run on part of its input.
func TestExecInputLostBehindItsEnd(t *testing.T) {
	again := make(chan string, 1)
	c := execServers(t,
		func(s *execServer, _ *http.Request) {
			s.hear()
			s.started(0, nil)
			s.hear() // "whole", which is not acknowledged
			s.hear() // the end of stdin
			_ = s.CloseNow()
		},
		func(s *execServer, _ *http.Request) {
			s.started(0, nil)
			_, message, _ := s.Read(context.Background())
			again <- string(message)
			_ = s.CloseNow()
		})
	s := open(t, c, shell("cat"))
	if _, err := s.Write([]byte("whole")); err != nil {
		t.Fatal(err)
	}
	if err := s.CloseStdin(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Copy(io.Discard, io.Discard); err == nil || !strings.Contains(err.Error(), "may be lost") {
		t.Errorf("it ends with %v", err)
	}
	select {
	case message := <-again:
		t.Errorf("the command received %q", message)
	default:
	}
}

// TestExecInputWaits writes more than may be in flight.
func TestExecInputWaits(t *testing.T) {
	const size = 200 << 10
	c := execServers(t, func(s *execServer, _ *http.Request) {
		s.hear()
		s.started(0, nil)
		taken := 0
		for taken < size {
			first, second := len(s.hear())-1, 0
			if taken+first < size {
				second = len(s.hear()) - 1 // which is in flight, too
			}
			taken += first + second
			s.say(api.ExecMessage{Type: api.ExecStdinTaken, Bytes: int64(taken)})
		}
		s.exit(0)
	})
	s := open(t, c, shell("cat"))
	if n, err := s.Write(make([]byte, size)); n != size || err != nil {
		t.Error(n, err)
	}
	if exit, err := s.Copy(io.Discard, io.Discard); exit.Code != 0 || err != nil {
		t.Error(exit, err)
	}
}

func TestExecRefused(t *testing.T) {
	c := execServers(t, func(s *execServer, _ *http.Request) {
		s.hear()
		s.say(api.ExecMessage{Type: api.ExecError, Error: "there is no user nemo", Code: "invalid_user", Hint: "name another"})
		_ = s.Close(websocket.StatusPolicyViolation, "")
	})
	if _, err := c.OpenExec(t.Context(), "vm_1", shell("cat")); !client.HasCode(err, "invalid_user") || err.Error() != "there is no user nemo (name another)" {
		t.Errorf("%v", err)
	}
	if _, err := c.AttachExec(t.Context(), "vm_1", "exec_1", 0); !client.IsNotFound(err) {
		t.Errorf("%v", err)
	}
	if _, err := c.RunExec(t.Context(), "vm_1", api.RunExec{Background: true}); err == nil {
		t.Error("one in the background was waited for")
	}
}

// TestExecSessionIsClosed closes sessions in every state; goleak finds what is
// left of them.
func TestExecSessionIsClosed(t *testing.T) {
	c := execServers(t,
		func(s *execServer, _ *http.Request) {
			s.hear()
			s.started(0, nil)
			for range 100 { // more than is read ahead; the client may leave meanwhile
				_ = s.Write(context.Background(), websocket.MessageBinary, []byte{api.ChannelStdout, 'x'})
			}
			_, _, _ = s.Read(context.Background())
		},
		func(s *execServer, _ *http.Request) {
			s.hear()
			s.started(0, nil) // and breaks
		})
	busy := open(t, c, shell("yes"))
	if next, err := busy.Next(); err != nil || string(next.Data) != "x" || next.Offset != 1 {
		t.Errorf("%+v, %v", next, err)
	}
	_ = busy.Close()
	if _, err := busy.Write([]byte("late")); err == nil {
		t.Error("written to a closed session")
	}
	broken := open(t, c, shell("cat"))
	_ = broken.Close()
}

func TestCommandInJSON(t *testing.T) {
	for text, want := range map[string]api.Command{`"ls -l"`: {Shell: "ls -l"}, `["ls","-l"]`: {Argv: []string{"ls", "-l"}}} {
		t.Run(text, func(t *testing.T) {
			var c api.Command
			if err := json.Unmarshal([]byte(text), &c); err != nil || c.Shell != want.Shell || len(c.Argv) != len(want.Argv) {
				t.Errorf("%s: %+v, %v", text, c, err)
			}
			if b, err := json.Marshal(c); err != nil || string(b) != text {
				t.Errorf("%s, %v", b, err)
			}
		})
	}
	for _, bad := range []string{`7`, `{}`, `["a",7]`, `null`} {
		t.Run(bad, func(t *testing.T) {
			if err := json.Unmarshal([]byte(bad), &api.Command{}); (err == nil) != (bad == "null") { // null is up to the caller
				t.Errorf("%s: %v", bad, err)
			}
		})
	}
}
