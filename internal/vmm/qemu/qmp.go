//go:build linux && amd64

package qemu

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// qmp is one connection to QEMU's control socket. It is ready for commands when
// dialQMP returns; once it has ended every command fails.
type qmp struct {
	conn    net.Conn
	version string
	onEvent func(qmpEvent) // called in order by the reader
	reader  sync.WaitGroup
	done    chan struct{} // closed when the reader has ended

	mu      sync.Mutex
	lastID  uint64
	waiting map[uint64]chan qmpMessage
}

// qmpEvent is an asynchronous message of QEMU.
type qmpEvent struct {
	Name string
	Data json.RawMessage
}

// qmpMessage is any line that QEMU sends: a greeting, an event or a reply.
type qmpMessage struct {
	Greeting *struct {
		Version struct {
			QEMU struct{ Major, Minor, Micro int }
		}
	} `json:"QMP"`
	Event  string
	Data   json.RawMessage
	ID     uint64
	Return json.RawMessage
	Error  *struct{ Class, Desc string }
}

const (
	// maxQMPLine bounds a line from QEMU, which a guest may have compromised, in bytes.
	maxQMPLine = 1 << 20
	// qmpWriteTimeout bounds the wait for QEMU to read a command.
	qmpWriteTimeout = 10 * time.Second
)

var (
	errQMPClosed = errors.New("QEMU's control connection has ended")
	errNotQMP    = errors.New("QEMU sent a line that is not QMP")
)

// dialQMP connects, reads the greeting and enters command mode. ctx bounds all three.
func dialQMP(ctx context.Context, path string, onEvent func(qmpEvent)) (*qmp, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	q, err := newQMP(ctx, conn, onEvent)
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	return q, nil
}

func newQMP(ctx context.Context, conn net.Conn, onEvent func(qmpEvent)) (*qmp, error) {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	lines := bufio.NewScanner(conn)
	lines.Buffer(nil, maxQMPLine)
	version, err := readGreeting(lines)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return nil, errors.Join(err, ctx.Err())
	}
	q := &qmp{conn: conn, version: version, onEvent: onEvent, done: make(chan struct{}), waiting: map[uint64]chan qmpMessage{}}
	q.reader.Go(func() { q.read(lines) })
	if err := q.do(ctx, qmpCommand{name: "qmp_capabilities"}, nil); err != nil {
		q.close()
		return nil, err
	}
	return q, nil
}

func readGreeting(lines *bufio.Scanner) (version string, err error) {
	if !lines.Scan() {
		return "", errors.Join(errQMPClosed, lines.Err())
	}
	m, err := parseQMP(lines.Bytes())
	if err != nil {
		return "", err
	}
	if m.Greeting == nil {
		return "", errNotQMP
	}
	v := m.Greeting.Version.QEMU
	return fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Micro), nil
}

func parseQMP(line []byte) (qmpMessage, error) {
	var m qmpMessage
	if err := json.Unmarshal(bytes.TrimSpace(line), &m); err != nil {
		return qmpMessage{}, errNotQMP
	}
	return m, nil
}

// read passes on events and replies until the connection ends.
func (q *qmp) read(lines *bufio.Scanner) {
	defer close(q.done)
	for lines.Scan() {
		m, err := parseQMP(lines.Bytes())
		if err != nil {
			_ = q.conn.Close()
			return
		}
		if m.Event != "" {
			q.onEvent(qmpEvent{m.Event, m.Data})
			continue
		}
		q.deliver(m)
	}
}

// deliver passes a reply to the command that waits for it, if there is one.
func (q *qmp) deliver(m qmpMessage) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if to, ok := q.waiting[m.ID]; ok {
		delete(q.waiting, m.ID)
		to <- m // does not block: its capacity is 1
	}
}

// qmpCommand is a command with its arguments, nil for none, and a file that is
// passed with it, nil for none.
type qmpCommand struct {
	name string
	args map[string]any
	file *os.File
}

// do runs one command and decodes its result into out, unless that is nil.
func (q *qmp) do(ctx context.Context, command qmpCommand, out any) error {
	id, reply := q.expect()
	defer q.forget(id)
	if err := q.send(command, id); err != nil {
		return fmt.Errorf("cannot send %s: %w", command.name, errors.Join(errQMPClosed, err))
	}
	select {
	case m := <-reply:
		return decodeReply(command.name, m, out)
	case <-q.done:
		return fmt.Errorf("no answer to %s: %w", command.name, errQMPClosed)
	case <-ctx.Done():
		return fmt.Errorf("no answer to %s: %w", command.name, ctx.Err())
	}
}

func (q *qmp) send(command qmpCommand, id uint64) error {
	message := map[string]any{"execute": command.name, "id": id}
	if command.args != nil {
		message["arguments"] = command.args
	}
	line := []byte(mustJSON(message) + "\n")
	_ = q.conn.SetWriteDeadline(time.Now().Add(qmpWriteTimeout))
	if command.file == nil {
		_, err := q.conn.Write(line)
		return err
	}
	socket, ok := q.conn.(*net.UnixConn)
	if !ok {
		return errors.New("a file can be sent only over a Unix socket")
	}
	_, _, err := socket.WriteMsgUnix(line, unix.UnixRights(int(command.file.Fd())), nil)
	return err
}

func decodeReply(command string, m qmpMessage, out any) error {
	if m.Error != nil {
		return fmt.Errorf("QEMU refuses %s: %s", command, m.Error.Desc)
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(m.Return, out); err != nil {
		return fmt.Errorf("cannot read the answer to %s: %w", command, err)
	}
	return nil
}

func (q *qmp) expect() (uint64, chan qmpMessage) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.lastID++
	reply := make(chan qmpMessage, 1)
	q.waiting[q.lastID] = reply
	return q.lastID, reply
}

func (q *qmp) forget(id uint64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.waiting, id)
}

// close closes the connection and waits for the reader. QEMU keeps running.
func (q *qmp) close() {
	_ = q.conn.Close()
	q.reader.Wait()
}
