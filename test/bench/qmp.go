package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// qmp is a control connection to a bare QEMU, for one command at a time.
type qmp struct {
	conn  *net.UnixConn
	lines *bufio.Scanner
}

// qmpLimit is for a whole connection.
const qmpLimit = time.Minute

func dialQMP(path string) (*qmp, error) {
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	q := &qmp{conn: conn, lines: bufio.NewScanner(conn)}
	_ = conn.SetDeadline(time.Now().Add(qmpLimit))
	if !q.lines.Scan() { // the greeting
		return nil, errors.Join(errors.New("QEMU sends no greeting"), q.lines.Err(), conn.Close())
	}
	if err := q.do("qmp_capabilities", nil, nil); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return q, nil
}

type qmpMessage struct {
	Event  string
	Data   struct{ Status string }
	Return json.RawMessage
	Error  *struct{ Desc string }
}

// do runs a command, and passes file to QEMU unless it is nil.
func (q *qmp) do(name string, args any, file *os.File) error {
	line, err := json.Marshal(map[string]any{"execute": name, "arguments": args})
	if args == nil {
		line, err = json.Marshal(map[string]any{"execute": name})
	}
	if err != nil {
		return err
	}
	var rights []byte
	if file != nil {
		rights = unix.UnixRights(int(file.Fd()))
	}
	if _, _, err := q.conn.WriteMsgUnix(append(line, '\n'), rights, nil); err != nil {
		return err
	}
	_, err = q.await(func(m qmpMessage) bool { return m.Return != nil })
	return err
}

// await reads until a message matches.
func (q *qmp) await(matches func(qmpMessage) bool) (qmpMessage, error) {
	for q.lines.Scan() {
		var m qmpMessage
		if err := json.Unmarshal(q.lines.Bytes(), &m); err != nil {
			return m, err
		}
		if m.Error != nil {
			return m, fmt.Errorf("QEMU has answered: %s", m.Error.Desc)
		}
		if matches(m) {
			return m, nil
		}
	}
	return qmpMessage{}, errors.Join(errors.New("QEMU has closed the connection"), q.lines.Err())
}

// move saves the devices to a file or loads them from it, with the memory if all is
// set, and waits for the end.
func (q *qmp) move(command string, file *os.File, all bool) error {
	capabilities := []any{
		map[string]any{"capability": "events", "state": true},
		map[string]any{"capability": "x-ignore-shared", "state": !all},
	}
	if err := q.do("migrate-set-capabilities", map[string]any{"capabilities": capabilities}, nil); err != nil {
		return err
	}
	if err := q.do("getfd", map[string]any{"fdname": "devices"}, file); err != nil {
		return err
	}
	if err := q.do(command, map[string]any{"uri": "fd:devices"}, nil); err != nil {
		return err
	}
	m, err := q.await(func(m qmpMessage) bool {
		return m.Event == "MIGRATION" && (m.Data.Status == "completed" || m.Data.Status == "failed")
	})
	if err == nil && m.Data.Status == "failed" {
		err = errors.New("QEMU has failed to move its devices")
	}
	return err
}

func (q *qmp) close() error { return q.conn.Close() }
