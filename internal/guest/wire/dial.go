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

// OpDial connects to a port on the guest's own loopback: DialArgs → nothing,
// then the connection's bytes in frames, both ways, until both sides have ended
// theirs. A stream that ends before that is a connection that broke.
const OpDial Op = "dial"

// DialArgs are the arguments of OpDial.
type DialArgs struct {
	Port int `json:"port"` // 1 to 65535, TCP
}

// CodeRefused answers OpDial: nobody listens on the port.
const CodeRefused = "refused"

// The frames of a dialled connection.
const (
	dialData byte = 'd' // at least one byte
	dialEnd  byte = 'e' // empty: no more will be sent
)

// Dial connects to a TCP port on the guest's loopback. ctx bounds the
// connecting only. The reading and the writing side of the connection are for
// one goroutine each.
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
		return nil, s.fault(err)
	}
	return &dialled{Conn: s}, nil
}

// DialHandler connects to ports of the guest. A Handler that is none does not
// know the operation.
type DialHandler interface {
	// Dial connects to a TCP port of the guest's loopback. It refuses with
	// [Refuse].
	Dial(ctx context.Context, port int) (DialConn, error)
}

// maxPort is the highest TCP port.
const maxPort = 65535

// dial serves one connection until it has ended. It reports whether asked was
// its to serve.
func (r request) dial(ctx context.Context, asked Request) bool {
	handler, ok := r.handler.(DialHandler)
	if !ok || asked.Op != OpDial {
		return false
	}
	var args DialArgs
	if err := json.Unmarshal(asked.Args, &args); err != nil || args.Port < 1 || args.Port > maxPort {
		sendError(r.stream, CodeInvalid, "the arguments of dial are not understood")
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
	relay(&dialled{Conn: r.stream}, conn)
	return true
}

// dialled is one end of a dialled connection, on its stream.
type dialled struct {
	net.Conn // the stream

	header [frameStart]byte
	have   int  // bytes of header
	left   int  // bytes of the present frame still to come
	ended  bool // the other side has said that it sends no more

	broken error // of a write that left half a frame, or of CloseWrite
}

var (
	errDialFrame  = errors.New("a dialled connection sent what is no frame of it")
	errWriteEnded = errors.New("cannot write to a connection after its writing side was closed")
)

// Read implements net.Conn. After a deadline it can go on.
func (d *dialled) Read(p []byte) (int, error) {
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
	return n, broke(err)
}

// nextFrame reads the start of the next frame. Empty ones are refused, so that
// every frame is worth its way.
func (d *dialled) nextFrame() error {
	for d.have < frameStart {
		n, err := d.Conn.Read(d.header[d.have:])
		d.have += n
		if err != nil && d.have < frameStart {
			return broke(err)
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

// broke tells an end that was not announced from one that was.
func broke(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Write implements net.Conn. One that fails is the last.
func (d *dialled) Write(p []byte) (written int, err error) {
	for len(p) > 0 && d.broken == nil {
		n := min(len(p), MaxFrame)
		if d.broken = writeFrame(d.Conn, dialData, p[:n]); d.broken == nil {
			written += n
			p = p[n:]
		}
	}
	return written, d.broken
}

// CloseWrite tells the other side that no more is sent; it may go on sending.
func (d *dialled) CloseWrite() error {
	if d.broken != nil {
		return d.broken
	}
	err := writeFrame(d.Conn, dialEnd, nil)
	d.broken = errWriteEnded
	return err
}

// Close implements net.Conn. The deadline ends a reading that waits: for yamux,
// a stream may be read after it was closed.
func (d *dialled) Close() error {
	_ = d.SetDeadline(time.Unix(1, 0))
	return d.Conn.Close()
}

// DialConn is a connection whose sides end one by one.
type DialConn interface {
	net.Conn
	CloseWrite() error
}

// relay passes bytes between a dialled connection and the guest's own, until
// both sides have ended or either broke. It closes both.
func relay(d *dialled, own DialConn) {
	cut := func() { _, _ = d.Close(), own.Close() }
	defer cut()
	var both sync.WaitGroup
	pass := func(to, from DialConn) {
		_, err := io.Copy(patient{to}, from)
		if err != nil || to.CloseWrite() != nil {
			cut()
		}
	}
	both.Go(func() { pass(own, d) })
	both.Go(func() { pass(d, own) })
	both.Wait()
}

// stallLimit is how long one side may take nothing of what the other sends: a
// program that never reads must not hold a connection that nobody has any more.
const stallLimit = 10 * time.Minute

// patient writes with a bound on each write.
type patient struct{ net.Conn }

func (p patient) Write(b []byte) (int, error) {
	if err := p.SetWriteDeadline(time.Now().Add(stallLimit)); err != nil {
		return 0, err
	}
	return p.Conn.Write(b)
}
