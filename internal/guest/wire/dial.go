package wire

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// OpDial connects to a port of the guest's loopback: DialArgs → nothing, then the
// connection's bytes in frames in both directions, until both sides have sent dialEnd.
// If the stream ends before, the connection is broken.
const OpDial Op = "dial"

// DialArgs are the arguments of OpDial.
type DialArgs struct {
	Port int `json:"port"` // 1 to 65535, TCP
}

// CodeRefused answers OpDial when no program listens on the port.
const CodeRefused = "refused"

// The frames of a connection.
const (
	dialData byte = 'd' // at least one byte
	dialEnd  byte = 'e' // empty: this side sends no more
)

// Dial connects to a TCP port of the guest's loopback. ctx limits the connect only. One
// goroutine may read from the connection and one may write to it.
func (c *Client) Dial(ctx context.Context, port int) (DialConn, error) {
	s, err := c.begin(ctx, OpDial, DialArgs{Port: port})
	if err != nil {
		return nil, err
	}
	err = readResult(s, nil)
	if !s.stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		_ = s.Close()
		return nil, s.explain(err)
	}
	return &framedConn{Conn: s}, nil
}

// DialHandler connects to ports of the guest. A [Handler] that does not implement
// it does not know the operation.
type DialHandler interface {
	// Dial connects to a TCP port of the guest's loopback. Its errors come from
	// [Refuse].
	Dial(ctx context.Context, port int) (DialConn, error)
}

// maxPort is the highest TCP port.
const maxPort = 65535

// dial serves one connection until its end. It reports whether it served the request.
func (r request) dial(ctx context.Context, asked Request) bool {
	handler, ok := r.handler.(DialHandler)
	if !ok || asked.Op != OpDial {
		return false
	}
	var args DialArgs
	if err := json.Unmarshal(asked.Args, &args); err != nil || args.Port < 1 || args.Port > maxPort {
		sendError(r.stream, CodeInvalid, "invalid arguments of dial")
		return true
	}
	conn, err := handler.Dial(ctx, args.Port)
	if err != nil {
		sendFailure(r.stream, err)
		return true
	}
	if sendResult(r.stream, nil) != nil {
		_ = conn.Close()
		return true
	}
	relay(&framedConn{Conn: r.stream}, conn)
	return true
}

// framedConn is one end of a dialled connection, over its stream.
type framedConn struct {
	net.Conn // the stream

	header [frameStart]byte
	have   int  // bytes of header read
	left   int  // bytes left of the current frame
	ended  bool // the other side has sent dialEnd

	writeErr error // returned by all later writes, after a partial frame or CloseWrite
}

var (
	errDialFrame  = errors.New("invalid frame of a dialled connection")
	errWriteEnded = errors.New("cannot write to a connection after its writing side was closed")
)

// Read implements net.Conn. It may be called again after a deadline has passed.
func (d *framedConn) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for d.left == 0 {
		if d.ended {
			return 0, io.EOF
		}
		if err := d.nextFrame(); err != nil {
			return 0, err
		}
	}
	n, err := d.Conn.Read(p[:min(len(p), d.left)])
	d.left -= n
	return n, endedEarly(err)
}

// nextFrame reads the start of the next frame. It refuses frames without data: a hostile
// agent could send any number of them.
func (d *framedConn) nextFrame() error {
	for d.have < frameStart {
		n, err := d.Conn.Read(d.header[d.have:])
		d.have += n
		if err != nil && d.have < frameStart {
			return endedEarly(err)
		}
	}
	d.have = 0
	size := binary.BigEndian.Uint32(d.header[1:])
	switch kind := d.header[0]; {
	case kind == dialData && size > 0 && size <= MaxFrame:
		d.left = int(size)
	case kind == dialEnd && size == 0:
		d.ended = true
	default:
		return errDialFrame
	}
	return nil
}

// endedEarly replaces io.EOF with an error: the stream ended without dialEnd.
func endedEarly(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Write implements net.Conn. After an error all later writes fail.
func (d *framedConn) Write(p []byte) (written int, err error) {
	for len(p) > 0 && d.writeErr == nil {
		n := min(len(p), MaxFrame)
		if d.writeErr = writeFrame(d.Conn, dialData, p[:n]); d.writeErr == nil {
			written += n
			p = p[n:]
		}
	}
	return written, d.writeErr
}

// CloseWrite ends this side's direction; the other side may still send.
func (d *framedConn) CloseWrite() error {
	if d.writeErr != nil {
		return d.writeErr
	}
	err := writeFrame(d.Conn, dialEnd, nil)
	d.writeErr = errWriteEnded
	return err
}

// Close implements net.Conn. The deadline interrupts a Read of another goroutine: yamux
// allows reads after a close.
func (d *framedConn) Close() error {
	_ = d.SetDeadline(time.Unix(1, 0))
	return d.Conn.Close()
}

// DialConn is a connection that can be half-closed.
type DialConn interface {
	net.Conn
	CloseWrite() error
}

// relay copies between the host's connection and the guest's, until both
// directions have ended or one has failed. It closes both.
func relay(host *framedConn, guest DialConn) {
	closeBoth := func() { _, _ = host.Close(), guest.Close() }
	defer closeBoth()
	var both sync.WaitGroup
	copyTo := func(to, from DialConn) {
		_, err := io.Copy(deadlineWriter{to}, from)
		if err != nil || to.CloseWrite() != nil {
			closeBoth()
		}
	}
	both.Go(func() { copyTo(guest, host) })
	both.Go(func() { copyTo(host, guest) })
	both.Wait()
}

// writeTimeout is how long one side may read nothing that the other sends: a program that
// never reads must not keep an abandoned connection open.
const writeTimeout = 10 * time.Minute

// deadlineWriter limits each write to writeTimeout.
type deadlineWriter struct{ net.Conn }

func (w deadlineWriter) Write(b []byte) (int, error) {
	if err := w.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return 0, err
	}
	return w.Conn.Write(b)
}
