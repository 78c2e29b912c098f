package client

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"strconv"

	"github.com/coder/websocket"
)

// Tunnel is a connection to a port of a guest. One goroutine may read and another may
// write at a time.
type Tunnel struct {
	conn    *websocket.Conn
	stop    func() bool // forgets the context that the tunnel ends with
	message io.Reader   // the one that is being read; nil between messages
	fresh   bool        // nothing of it was read yet
	ended   bool        // the guest has ended its direction
}

// OpenTunnel connects to a TCP port of a VM's guest, also to one that listens on its
// loopback address only. A sleeping VM is woken first. The tunnel ends with ctx or Close.
func (c *Client) OpenTunnel(ctx context.Context, id string, port int) (*Tunnel, error) {
	path, err := item(vms, id, "tunnel")
	if err != nil {
		return nil, err
	}
	conn, err := c.dial(ctx, call{method: http.MethodGet, path: path, query: url.Values{"port": {strconv.Itoa(port)}}})
	if err != nil {
		return nil, err
	}
	conn.SetReadLimit(-1) // no message is held
	return &Tunnel{conn: conn, stop: context.AfterFunc(ctx, func() { _ = conn.CloseNow() })}, nil
}

// Read returns bytes of the guest, and io.EOF once it has ended its direction.
func (t *Tunnel) Read(p []byte) (int, error) {
	for {
		if t.message == nil {
			var err error
			if _, t.message, err = t.conn.Reader(context.Background()); err != nil {
				return 0, err
			}
			t.fresh = true
		}
		n, err := t.message.Read(p)
		empty := t.fresh && n == 0
		t.fresh = t.fresh && n == 0
		if err == io.EOF {
			if empty {
				if !t.ended {
					t.ended = true
					t.conn.CloseRead(context.Background()) // answers pings from here on
				}
				return 0, io.EOF // t.message stays: so does the end
			}
			t.message, err = nil, nil
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}

// Write sends bytes to the guest.
func (t *Tunnel) Write(p []byte) (int, error) {
	if len(p) == 0 { // which would be an end
		return 0, nil
	}
	if err := t.conn.Write(context.Background(), websocket.MessageBinary, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// CloseWrite ends the direction to the guest; the other goes on.
func (t *Tunnel) CloseWrite() error {
	return t.conn.Write(context.Background(), websocket.MessageBinary, nil)
}

// Close ends the tunnel.
func (t *Tunnel) Close() error {
	t.stop()
	return t.conn.CloseNow()
}
