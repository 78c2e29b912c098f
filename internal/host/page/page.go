// Package page asks a guest's web server for one page, to learn whether it
// answers. It is given the connection, so that nothing but the guest is ever
// reached: it follows no redirect, uses no proxy and resolves no name.
//
// What it reads is bounded, because the server may be hostile. It runs in the
// caller's goroutine and leaves none behind. Start at [Status].
package page

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"net/url"
)

const (
	maxAnswer  = 64 << 10 // bytes that are looked at
	maxInterim = 8        // answers of the kind 1xx before the one that counts
)

// Status sends a GET for target, a path with its query, over conn and returns
// the answer's status. The body is left unread; closing conn is the caller's,
// and so is bounding the time.
func Status(conn io.ReadWriter, host, target string) (int, error) {
	u, err := url.ParseRequestURI(target)
	if err != nil {
		return 0, fmt.Errorf("cannot ask for the page: %w", err)
	}
	u.Scheme, u.Host = "http", host
	req := &http.Request{
		Method: http.MethodGet, URL: u, Host: host, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Close: true,
		Header: http.Header{"User-Agent": {"hatchd"}, "Accept": {"*/*"}},
	}
	if err := req.Write(conn); err != nil {
		return 0, fmt.Errorf("cannot ask for the page: %w", err)
	}
	return readStatus(bufio.NewReader(io.LimitReader(conn, maxAnswer)), req)
}

// readStatus passes over interim answers.
func readStatus(from *bufio.Reader, req *http.Request) (int, error) {
	for range maxInterim {
		// The body may have no end, and closing it would read on: it is left.
		answer, err := http.ReadResponse(from, req) //nolint:bodyclose // see above
		if err != nil {
			return 0, fmt.Errorf("cannot read the answer: %w", err)
		}
		if answer.StatusCode >= http.StatusOK || answer.StatusCode == http.StatusSwitchingProtocols {
			return answer.StatusCode, nil
		}
	}
	return 0, fmt.Errorf("more than %d interim answers", maxInterim)
}
