//go:build linux && amd64

package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/host/jail"
	"github.com/hatchvm/hatch/internal/vmm"
)

const qmpGreeting = `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "x"}, "capabilities": ["oob"]}}` + "\n"

// answering returns a fake QEMU that answers each command with what reply returns.
func answering(reply func(command string, id uint64) string) func(net.Conn) {
	return func(c net.Conn) {
		_, _ = fmt.Fprint(c, qmpGreeting)
		lines := bufio.NewScanner(c)
		for lines.Scan() {
			var m struct {
				Execute string
				ID      uint64
			}
			_ = json.Unmarshal(lines.Bytes(), &m)
			if _, err := fmt.Fprint(c, reply(m.Execute, m.ID)); err != nil {
				return
			}
		}
	}
}

func ok(id uint64) string { return fmt.Sprintf(`{"return": {}, "id": %d}`+"\n", id) }

func TestQMPMatchesRepliesToCommands(t *testing.T) {
	q, err := pipeQMP(t, answering(func(command string, id uint64) string {
		switch command {
		case "query-status":
			return `{"event": "RESUME", "timestamp": {}}` + "\n" + ok(9999) + fmt.Sprintf(`{"return": {"running": true}, "id": %d}`+"\n", id)
		case "refused":
			return fmt.Sprintf(`{"error": {"class": "GenericError", "desc": "no such thing"}, "id": %d}`+"\n", id)
		default:
			return ok(id)
		}
	}))
	if err != nil {
		t.Fatal(err)
	}
	defer q.close()
	if q.version != "7.2.22" {
		t.Errorf("version %q", q.version)
	}
	var status struct{ Running bool }
	if err := q.do(t.Context(), qmpCommand{name: "query-status"}, &status); err != nil || !status.Running {
		t.Errorf("%+v, %v", status, err)
	}
	if err := q.do(t.Context(), qmpCommand{name: "refused"}, nil); err == nil || !strings.Contains(err.Error(), "no such thing") {
		t.Errorf("a refusal: %v", err)
	}
}

func TestQMPCommandEndsWithItsContext(t *testing.T) {
	q, err := pipeQMP(t, answering(func(command string, id uint64) string {
		if command == "qmp_capabilities" {
			return ok(id)
		}
		return ""
	}))
	if err != nil {
		t.Fatal(err)
	}
	defer q.close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := q.do(ctx, qmpCommand{name: "stop"}, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("the error is %v", err)
	}
	if len(q.waiting) != 0 {
		t.Errorf("%d commands still wait", len(q.waiting))
	}
}

func TestInvalidQMPClosesTheConnection(t *testing.T) {
	for name, output := range map[string]string{
		"no JSON":         "hello\n",
		"no greeting":     `{"event": "STOP"}` + "\n",
		"an endless line": strings.Repeat("x", maxQMPLine+1),
		"nothing":         "",
	} {
		t.Run(name, func(t *testing.T) {
			if q, err := pipeQMP(t, func(c net.Conn) { _, _ = fmt.Fprint(c, output); _ = c.Close() }); err == nil {
				q.close()
				t.Errorf("%s was accepted as QMP", name)
			}
		})
	}
	q, err := pipeQMP(t, answering(func(command string, id uint64) string {
		if command == "qmp_capabilities" {
			return ok(id)
		}
		return "garbage\n"
	}))
	if err != nil {
		t.Fatal(err)
	}
	if err := q.do(t.Context(), qmpCommand{name: "stop"}, nil); !errors.Is(err, errQMPClosed) {
		t.Errorf("the error is %v", err)
	}
	q.close()
}

func FuzzParseQMP(f *testing.F) {
	f.Add([]byte(qmpGreeting))
	f.Add([]byte(`{"return": {}, "id": 1}`))
	f.Add([]byte(`{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-reset"}}`))
	f.Fuzz(func(_ *testing.T, line []byte) {
		m, err := parseQMP(line)
		if err != nil {
			return
		}
		_ = decodeReply("x", m, &struct{ Running bool }{})
		(&machine{}).handleShutdown(m.Data)
	})
}

func FuzzParseSocketTable(f *testing.F) {
	f.Add("0: 2 0 1 1 1 12345 /run/a b\n")
	f.Fuzz(func(_ *testing.T, table string) { parseSocketTable(table) })
}

// A command may come between the close of the channels and the release of the
// machine: it leaves the control connection to the release, which closes it.
func TestACommandOfAClosedMachineLosesNoConnection(t *testing.T) {
	q, err := pipeQMP(t, answering(func(_ string, id uint64) string { return ok(id) }))
	if err != nil {
		t.Fatal(err)
	}
	defer q.close()
	id, err := jail.Identify(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	proc, err := jail.Open(id, "", "")
	if err != nil {
		t.Fatal(err)
	}
	stderr, w, err := newStderr(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	m := (&Driver{log: slog.New(slog.DiscardHandler)}).newMachine(vmm.Handle{ID: "vm_1"}, proc, stderr)
	<-m.control
	m.control <- q
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if err := m.Pause(t.Context()); !errs.HasCode(err, "machine_gone") {
		t.Errorf("a command of a closed machine: %v, want machine_gone", err)
	}
	if left := <-m.control; left != q {
		t.Errorf("the machine has the connection %p, want %p", left, q)
	}
}
