package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/coder/websocket"

	"github.com/hatchvm/hatch/api"
)

// fakeExecs pretends the commands of one VM, a few of them, and notes what it
// was told.
type fakeExecs struct {
	all     []api.Exec
	asked   chan api.RunExec
	signals chan string
	sizes   chan api.TerminalSize
}

func newFakeExecs() *fakeExecs {
	code := 137
	ended := api.Time{Time: testNow.Add(-time.Minute)}
	return &fakeExecs{
		asked: make(chan api.RunExec, 8), signals: make(chan string, 8), sizes: make(chan api.TerminalSize, 8),
		all: []api.Exec{
			{
				ID: "exec_run000000001", Command: api.Command{Argv: []string{"sh", "-c", "while true; do date; sleep 1; done"}}, User: "www\x1b[2J",
				Cwd: "/srv", TTY: &api.TerminalSize{Rows: 24, Cols: 80}, State: api.ExecRunning, PID: 312, StartedAt: api.Time{Time: testNow.Add(-90 * time.Second)}, OutputBytes: 2700,
			},
			{
				ID: "exec_end000000002", Command: api.Command{Shell: "sleep 60"}, State: api.ExecExited, PID: 300, StartedAt: api.Time{Time: testNow.Add(-2 * time.Hour)},
				EndedAt: &ended, ExitCode: &code, Signal: "SIGKILL", TimedOut: true,
			},
		},
	}
}

func (f *fakeExecs) routes(mux *http.ServeMux) {
	const execs = "/vms/{id}/execs"
	mux.HandleFunc("POST /vms/{id}/exec", func(w http.ResponseWriter, _ *http.Request) { reply(w, 201, f.all[0]) })
	mux.HandleFunc("GET /vms/{id}/exec", f.stream)
	mux.HandleFunc("GET "+execs+"/{exec_id}/attach", f.stream)
	mux.HandleFunc("GET "+execs, func(w http.ResponseWriter, _ *http.Request) { reply(w, 200, f.all) })
	mux.HandleFunc("DELETE "+execs+"/{exec_id}", func(w http.ResponseWriter, _ *http.Request) { reply(w, 200, api.Deleted{Status: "deleted"}) })
	mux.HandleFunc("GET "+execs+"/{exec_id}/logs", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "said\n") })
	mux.HandleFunc("POST "+execs+"/{exec_id}/signal", func(w http.ResponseWriter, r *http.Request) {
		var s api.SignalExec
		_ = json.NewDecoder(r.Body).Decode(&s)
		f.signals <- s.Signal
		reply(w, 200, api.Done{Status: "ok"})
	})
	mux.HandleFunc("POST "+execs+"/{exec_id}/resize", func(w http.ResponseWriter, r *http.Request) {
		var s api.TerminalSize
		_ = json.NewDecoder(r.Body).Decode(&s)
		f.sizes <- s
		reply(w, 200, api.Done{Status: "ok"})
	})
}

// execEnd is the server's end of a session.
type execEnd struct {
	*websocket.Conn
	r *http.Request
}

func (e execEnd) say(m api.ExecMessage) {
	text, _ := json.Marshal(m)
	_ = e.Write(e.r.Context(), websocket.MessageText, text)
}

func (e execEnd) print(channel byte, text string) {
	_ = e.Write(e.r.Context(), websocket.MessageBinary, append([]byte{channel}, text...))
}

func (f *fakeExecs) stream(w http.ResponseWriter, r *http.Request) {
	conn, err := websocket.Accept(w, r, nil)
	if err != nil {
		return
	}
	defer func() { _ = conn.CloseNow() }()
	conn.SetReadLimit(1 << 20)
	e := execEnd{conn, r}
	body := api.RunExec{Command: api.Command{Argv: []string{"cat"}}}
	if r.PathValue("exec_id") == "" {
		_, first, _ := conn.Read(r.Context())
		if json.Unmarshal(first, &body) != nil {
			return
		}
		f.asked <- body
	}
	e.say(api.ExecMessage{Type: api.ExecStarted, Exec: &api.Exec{ID: "exec_run000000001", TTY: body.TTY}, Offset: new(int64)})
	code := f.run(e, body)
	e.say(api.ExecMessage{Type: api.ExecEnded, ExitCode: &code, TimedOut: body.TimeoutMS > 0})
	_ = conn.Close(websocket.StatusNormalClosure, "")
}

func (f *fakeExecs) run(e execEnd, body api.RunExec) int {
	switch argv := body.Command.Argv; argv[0] {
	case "exit":
		e.print(api.ChannelStdout, "out\n")
		e.print(api.ChannelStderr, "err\n")
		code, _ := strconv.Atoi(argv[1])
		return code
	case "trap": // takes signals until it is killed
		e.print(api.ChannelStdout, "ready\n")
		for s := range f.signals {
			e.print(api.ChannelStdout, s+"\n")
			if s == argv[1] {
				return 130
			}
		}
	case "size":
		e.print(api.ChannelStdout, fmt.Sprintf("%d %d\r\n", body.TTY.Rows, body.TTY.Cols))
		size := <-f.sizes
		e.print(api.ChannelStdout, fmt.Sprintf("%d %d\r\n", size.Rows, size.Cols))
		return f.cat(e)
	default:
		return f.cat(e)
	}
	return 0
}

// cat sends stdin back to its end, or to ctrl-C.
func (f *fakeExecs) cat(e execEnd) int {
	taken := 0
	for {
		kind, message, err := e.Read(e.r.Context())
		switch {
		case err != nil:
			return 1
		case kind == websocket.MessageText:
			return 0
		case string(message) == "\x00\x03":
			e.print(api.ChannelStdout, "^C")
			return 130
		}
		taken += len(message) - 1
		e.say(api.ExecMessage{Type: api.ExecStdinTaken, Bytes: int64(taken)})
		e.print(api.ChannelStdout, string(message[1:]))
	}
}
