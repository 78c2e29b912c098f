package client

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/url"
	"path"
)

// unixURL is the URL of requests that go through a unix socket.
const unixURL = "http://localhost"

// DialUnix returns the function by which the Transport of an [http.Client] connects to
// the server of a unix:// URL, for [WithHTTPClient].
func DialUnix(socket string) func(ctx context.Context, network, addr string) (net.Conn, error) {
	return func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}
}

// useSocket makes the Client send its requests through a unix socket.
func (c *Client) useSocket(u *url.URL) error {
	if u.Host != "" || !path.IsAbs(u.Path) {
		return errors.New("cannot use the server's address: a unix socket must look like unix:///PATH")
	}
	c.base, c.local = unixURL, true
	c.http.Transport = &http.Transport{DialContext: DialUnix(u.Path)}
	return nil
}
