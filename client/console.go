package client

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"github.com/coder/websocket"
)

// VMConsole connects to a VM's serial console. Reads return the latest output, then
// new output. Only one client at a time may write; a readOnly connection cannot.
// The connection ends with ctx or Close.
func (c *Client) VMConsole(ctx context.Context, id string, readOnly bool) (io.ReadWriteCloser, error) {
	path, err := item(vms, id, "console")
	if err != nil {
		return nil, err
	}
	req := call{method: http.MethodGet, path: path, query: url.Values{}}
	if readOnly {
		req.query.Set("readonly", "true")
	}
	conn, err := c.dial(ctx, req)
	if err != nil {
		return nil, err
	}
	return websocket.NetConn(ctx, conn, websocket.MessageBinary), nil
}

// dial opens a WebSocket.
func (c *Client) dial(ctx context.Context, req call) (*websocket.Conn, error) {
	//nolint:bodyclose // the dialer has read and replaced the body
	conn, resp, err := websocket.Dial(ctx, c.url(req), &websocket.DialOptions{
		HTTPClient: c.http, HTTPHeader: c.headers(ctx, req),
	})
	switch {
	case err == nil:
		return conn, nil
	case resp == nil:
		return nil, Unreachable(c.server, err)
	case resp.StatusCode == http.StatusSwitchingProtocols:
		return nil, fmt.Errorf("cannot open a WebSocket: %w", err)
	}
	return nil, readError(resp) // a refused upgrade is an ordinary response; the dialer has kept its body
}
