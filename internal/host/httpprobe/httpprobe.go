// Package httpprobe asks a guest's web server for one page, to learn whether it
// answers. Its caller supplies the connection, so that it reaches nothing but the
// guest: it follows no redirect, uses no proxy and resolves no name.
//
// The server may be hostile: the answer is read within bounds. It starts no
// goroutine. Start at [Status].
package httpprobe

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"net/url"
)

const (
	maxAnswer  = 64 << 10 // bytes
	maxInterim = 8        // 1xx responses before the final one
)

// Status sends a GET for target, a path with its query, over conn and returns the
// status of the final response. It leaves the body unread. The caller bounds the
// time and closes conn.
func Status(conn io.ReadWriter, host, target string) (int, error) {
	u, err := url.ParseRequestURI(target)
	if err != nil {
		return 0, fmt.Errorf("cannot request the page: %w", err)
	}
	u.Scheme, u.Host = "http", host
	req := &http.Request{
		Method: http.MethodGet, URL: u, Host: host, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Close: true,
		Header: http.Header{"User-Agent": {"hatchd"}, "Accept": {"*/*"}},
	}
	if err := req.Write(conn); err != nil {
		return 0, fmt.Errorf("cannot request the page: %w", err)
	}
	return readStatus(bufio.NewReader(io.LimitReader(conn, maxAnswer)), req)
}

// readStatus skips interim responses.
func readStatus(from *bufio.Reader, req *http.Request) (int, error) {
	for range maxInterim {
		// The body may be endless, and closing it would read it: it stays open.
		answer, err := http.ReadResponse(from, req) //nolint:bodyclose // see above
		if err != nil {
			return 0, fmt.Errorf("cannot read the answer: %w", err)
		}
		if answer.StatusCode >= http.StatusOK || answer.StatusCode == http.StatusSwitchingProtocols {
			return answer.StatusCode, nil
		}
	}
	return 0, fmt.Errorf("more than %d interim responses", maxInterim)
}
