package httpapi_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/hatchvm/hatch/internal/server/httpapi"
)

// The rest of the body is never sent: an answer shows that it is not waited for.
func TestRoutesWithoutABodyReadNone(t *testing.T) {
	s := newServer(t)
	for _, line := range []string{
		"GET /healthz", "GET /vms", "GET /docs", "GET /vms/" + knownVM + "/console", "DELETE /vms/" + knownVM, "POST /vms/" + knownVM + "/stop",
	} {
		for name, more := range map[string]string{"a length": "Content-Length: 1000000\r\n\r\n", "chunks": "Transfer-Encoding: chunked\r\n\r\nf4240\r\n" + strings.Repeat(" ", 17)} {
			t.Run(line+" "+name, func(t *testing.T) {
				c := s.dialRaw(t)
				if _, err := fmt.Fprintf(c, "%s HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer %s\r\n%s", line, goodKey, more); err != nil {
					t.Fatal(err)
				}
				c.requireProblem(t, http.StatusBadRequest, "body_not_accepted")
			})
		}
	}
}

// Many clients send an empty object with every POST, and some do not say its length.
func TestRoutesWithoutABodyTakeAnEmptyOne(t *testing.T) {
	s := newServer(t)
	for body, status := range map[string]int{"": 200, "{}": 200, " {}\n": 200, "null": 200, "  ": 200, "{": 400, "[]": 400, `{"a":1}`: 400, strings.Repeat(" ", 17): 400} {
		wantStatus(t, s.call(t, "POST", "/vms/"+knownVM+"/pause", body), status)
		chunked := s.request(t, "POST", "/vms/"+knownVM+"/pause", body)
		chunked.Body, chunked.ContentLength = io.NopCloser(strings.NewReader(body)), -1
		wantStatus(t, s.send(t, chunked), status)
	}
}

func TestAnUnknownRouteDoesNotReadABody(t *testing.T) {
	s := newServer(t)
	c := s.dialRaw(t)
	c.begin(t, "POST /nothing", goodKey, 1000, "", "{")
	c.requireProblem(t, http.StatusNotFound, "no_such_route")
}

// requireProblem reads one answer.
func (c *rawClient) requireProblem(t *testing.T, status int, code string) {
	t.Helper()
	resp, err := http.ReadResponse(c.in, nil)
	if err != nil {
		t.Fatalf("there is no answer: %v", err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != status || !strings.Contains(string(body), `"code":"`+code+`"`) {
		t.Errorf("the answer is %s %s, %v; want %d %s", resp.Status, body, err, status, code)
	}
	if mayRetry := status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable || status == http.StatusInsufficientStorage; mayRetry != (resp.Header.Get("Retry-After") != "") {
		t.Errorf("%d has Retry-After %q", status, resp.Header.Get("Retry-After"))
	}
}

// holdBody begins a request, and returns once the server reads its body.
func (s *server) holdBody(t *testing.T, key string, size int) *rawClient {
	t.Helper()
	c := s.dialRaw(t)
	c.begin(t, "POST /vms", key, size, "Expect: 100-continue\r\n", "")
	resp, err := http.ReadResponse(c.in, nil)
	if err != nil || resp.StatusCode != http.StatusContinue {
		t.Fatalf("the server does not read the body: %v, %v", resp, err)
	}
	_ = resp.Body.Close()
	return c
}

func TestBodiesInProgressAreBounded(t *testing.T) {
	const mib = 1 << 20
	s := newLimitedServer(t, httpapi.Limits{BodyBytes: 3 * mib}) // 2 MiB for a user, the most of one body
	first := s.holdBody(t, goodKey, 3*mib/2)

	own := s.dialRaw(t)
	own.begin(t, "POST /vms", goodKey, mib, "", "{")
	own.requireProblem(t, http.StatusTooManyRequests, "too_many_bodies")
	shared := s.dialRaw(t)
	shared.begin(t, "POST /vms", otherKey, 2*mib, "", "{")
	shared.requireProblem(t, http.StatusServiceUnavailable, "server_busy")
	wantStatus(t, s.call(t, "POST", "/vms", `{}`), 201) // for which there is enough

	body := []byte(strings.Repeat("x", 3*mib/2))
	if _, err := first.Write(body); err != nil {
		t.Fatal(err)
	}
	first.requireProblem(t, http.StatusBadRequest, "invalid_body")
	s.holdBody(t, otherKey, 2*mib)
}

// A body of which the client does not tell the length counts as the longest.
func TestBodiesOfUnknownLengthCount(t *testing.T) {
	s := newLimitedServer(t, httpapi.Limits{BodyBytes: 3 << 20})
	s.holdBody(t, goodKey, 1)
	c := s.dialRaw(t)
	if _, err := fmt.Fprintf(c, "POST /vms HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer %s\r\nTransfer-Encoding: chunked\r\n\r\n", goodKey); err != nil {
		t.Fatal(err)
	}
	c.requireProblem(t, http.StatusTooManyRequests, "too_many_bodies")
}

func TestOneUserCannotTakeAllRequests(t *testing.T) {
	s := newLimitedServer(t, httpapi.Limits{RequestsPerUser: 1})
	began := make(chan struct{})
	s.vms.log = func(ctx context.Context, _ int, _ bool, _ io.Writer) error {
		close(began)
		<-ctx.Done()
		return nil
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if resp, err := http.DefaultClient.Do(s.request(t, "GET", "/vms/"+knownVM+"/logs?follow=true", "").WithContext(ctx)); err == nil {
			<-ctx.Done()
			_ = resp.Body.Close()
		}
	}()
	<-began
	reply := s.call(t, "GET", "/vms", "")
	wantStatus(t, reply, http.StatusTooManyRequests)
	if p := reply.problem(t); p.Code != "too_many_requests" || reply.Header.Get("Retry-After") == "" {
		t.Errorf("%s, Retry-After %q", reply.body, reply.Header.Get("Retry-After"))
	}
	other := s.request(t, "GET", "/vms", "")
	other.Header.Set("Authorization", "Bearer "+otherKey)
	wantStatus(t, s.send(t, other), http.StatusOK)
	cancel()
	<-ended
}

// tryKey calls a route from an address with a key.
func (s *server) tryKey(from, key string) (status int, header http.Header) {
	r := httptest.NewRequest("GET", "/vms", nil)
	r.RemoteAddr = from
	r.Header.Set("Authorization", "Bearer "+key)
	w := httptest.NewRecorder()
	s.Config.Handler.ServeHTTP(w, r)
	return w.Code, w.Header()
}

// exhaust tries wrong keys until the answer is 429. A try is added each some time, so
// their number is not exact.
func (s *server) exhaust(t *testing.T, try func() (status int, header http.Header)) {
	t.Helper()
	for range 10_000 {
		status, header := try()
		switch status {
		case http.StatusUnauthorized:
		case http.StatusTooManyRequests:
			if header.Get("Retry-After") == "" || header.Get("WWW-Authenticate") != "" {
				t.Errorf("the headers are %v", header)
			}
			return
		default:
			t.Fatalf("a wrong key gets %d", status)
		}
	}
	t.Fatal("any number of keys can be tried")
}

func TestTriesOfKeysAreLimitedPerClient(t *testing.T) {
	s := newServer(t)
	const attacker, sameClient, other = "[2001:db8::1]:1000", "[2001:db8::2]:2000", "[2001:db8:0:1::1]:1000"
	s.exhaust(t, func() (int, http.Header) { return s.tryKey(attacker, "hk_wrong") })
	for _, c := range []struct {
		from, key string
		status    int
	}{
		{sameClient, "hk_wrong", 429},
		{sameClient, otherKey, 429}, // the answer does not tell whether a key is valid
		{sameClient, goodKey, 200},  // it has authenticated before
		{other, otherKey, 200},
		{other, "hk_wrong", 401},
	} {
		if got, _ := s.tryKey(c.from, c.key); got != c.status {
			t.Errorf("%s with %s gets %d, want %d", c.from, c.key, got, c.status)
		}
	}
}

// All clients of a reverse proxy come from loopback: one that tries keys locks out none.
func TestTriesOfKeysThroughAProxy(t *testing.T) {
	s := newServer(t)
	s.contract = nil
	call := func(key string) (int, http.Header) {
		r := s.request(t, "GET", "/vms", "")
		r.Header.Set("Authorization", "Bearer "+key)
		reply := s.send(t, r)
		return reply.StatusCode, reply.Header
	}
	s.exhaust(t, func() (int, http.Header) { return call("hk_wrong") })
	for _, key := range []string{goodKey, otherKey} {
		if got, _ := call(key); got != http.StatusOK {
			t.Errorf("%s gets %d", key, got)
		}
	}
	if lines := strings.Count(s.log.String(), `"msg":"request"`); lines > 40 {
		t.Errorf("the log has %d lines", lines)
	}
}

// Anyone can send requests without a key.
func TestRequestsWithoutAKeyFillNoLog(t *testing.T) {
	s := newServer(t)
	s.contract = nil
	for range 100 {
		r := s.request(t, "GET", "/healthz", "")
		r.Header.Del("Authorization")
		s.send(t, r)
	}
	if lines := strings.Count(s.log.String(), "\n"); lines > 40 {
		t.Errorf("the log has %d lines", lines)
	}
}
