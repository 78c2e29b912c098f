package admission

import (
	"net"
	"syscall"
	"time"
)

// refusalTimeout bounds the write of a refusal, which fits into the buffer of a socket
// that was just opened.
const refusalTimeout = time.Second

// Listener accepts connections for which there is a place, and a file descriptor. Others
// get the refusal and are closed. A connection has its place until it is closed, also after HTTP has
// handed it over, as to a WebSocket.
type Listener struct {
	net.Listener
	places  *Places
	refusal []byte
	log     *Log
}

// Limit returns l with places.
func Limit(l net.Listener, places *Places, refusal string, log *Log) *Listener {
	return &Listener{Listener: l, places: places, refusal: []byte(refusal), log: log}
}

// Accept implements net.Listener.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		client := ClientOf(conn.RemoteAddr())
		if raw, ok := conn.(syscall.Conn); ok && !LeavesDescriptors(raw) {
			l.refuse(conn, client, "connection refused: hatchd has too few file descriptors left")
			continue
		}
		if free, ok := l.places.Take(client); ok {
			return &placed{Conn: conn, free: free}, nil
		}
		l.refuse(conn, client, "connection refused: too many")
	}
}

// refuse answers without reading.
func (l *Listener) refuse(conn net.Conn, client Client, message string) {
	l.log.Refused(message, client)
	_ = conn.SetDeadline(time.Now().Add(refusalTimeout)) // an error means that the client has gone, here and below
	_, _ = conn.Write(l.refusal)
	_ = conn.Close()
}

// placed is a connection with a place.
type placed struct {
	net.Conn
	free func()
}

// NetConn returns the connection itself.
func (c *placed) NetConn() net.Conn { return c.Conn }

// Close implements net.Conn.
func (c *placed) Close() error {
	defer c.free()
	return c.Conn.Close()
}
