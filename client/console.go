package client

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"github.com/coder/websocket"
)

// VMConsole connects to a VM's serial console: what was printed lately comes
// first, then both sides live. Only one caller at a time may write; with
// readOnly nothing may be written. The connection ends with ctx or Close.
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
	//nolint:bodyclose // the dialer has read and replaced it
	conn, resp, err := websocket.Dial(ctx, c.url(req), &websocket.DialOptions{
		HTTPClient: c.http, HTTPHeader: c.headers(req),
	})
	if err != nil {
		return nil, dialError(c.base, resp, err)
	}
	return conn, nil
}

// dialError prefers the server's own words: a refused upgrade is an ordinary
// answer, the body of which the dialer kept.
func dialError(base string, resp *http.Response, err error) error {
	if resp == nil {
		return fmt.Errorf("cannot reach %s: %w", base, withoutURL(err))
	}
	if resp.StatusCode == http.StatusSwitchingProtocols {
		return fmt.Errorf("cannot open a WebSocket: %w", err)
	}
	return readError(resp)
}
