package httpapi_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// rawClient is a connection that sends what no well-behaved client sends.
type rawClient struct {
	net.Conn
	in *bufio.Reader
}

func (s *server) dialRaw(t *testing.T) *rawClient {
	t.Helper()
	conn, err := net.Dial("tcp", s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil { // less than a body may take
		t.Fatal(err)
	}
	return &rawClient{Conn: conn, in: bufio.NewReader(conn)}
}

// begin sends a request's head and the first bytes of its body.
func (c *rawClient) begin(t *testing.T, line, key string, length int, more, body string) {
	t.Helper()
	_, err := fmt.Fprintf(c, "%s HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%s\r\n%s", line, key, length, more, body)
	if err != nil {
		t.Fatal(err)
	}
}

// requireStatus reads the answer to its end, and the end of the connection.
func (c *rawClient) requireStatus(t *testing.T, status int) {
	t.Helper()
	resp, err := http.ReadResponse(c.in, nil)
	if err != nil {
		t.Fatalf("there is no answer: %v", err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != status || !resp.Close {
		t.Errorf("the answer is %s, Connection: close %v; want %d and true", resp.Status, resp.Close, status)
	}
	if resp.ContentLength < 0 {
		t.Error("the length of the answer is not known: the client waits for the end of the connection")
	}
	if _, err := io.ReadAll(resp.Body); err != nil {
		t.Errorf("the answer is cut: %v", err)
	}
	if rest, err := io.ReadAll(c.in); err != nil || len(rest) > 0 {
		t.Errorf("after the answer: %q, %v", rest, err)
	}
}

func TestAnAnswerReachesAClientThatStillSends(t *testing.T) {
	s := newServer(t)
	const size = 32 << 20 // more than the buffers of both sockets
	c := s.dialRaw(t)
	c.begin(t, "PUT /vms/vm_known0000000/files?path=/x", "hk_wrong", size, "", "")
	piece := bytes.Repeat([]byte("x"), 1<<20)
	for sent := 0; sent < size; sent += len(piece) {
		if _, err := c.Write(piece); err != nil {
			t.Fatalf("after %d bytes: %v", sent, err)
		}
	}
	c.requireStatus(t, http.StatusUnauthorized)
}

func TestRefusalDoesNotWaitForTheBody(t *testing.T) {
	s := newServer(t)
	for name, key := range map[string]string{"wrong key": "hk_wrong", "no key": ""} {
		t.Run(name, func(t *testing.T) {
			c := s.dialRaw(t)
			c.begin(t, "POST /vms", key, 20, "", "{")
			c.requireStatus(t, http.StatusUnauthorized)
		})
	}
}

func TestALargeBodyIsRefusedBeforeItIsSent(t *testing.T) {
	s := newServer(t)
	c := s.dialRaw(t)
	c.begin(t, "POST /vms", goodKey, 3<<20, "Expect: 100-continue\r\n", "")
	c.requireStatus(t, http.StatusRequestEntityTooLarge) // http.ReadResponse returns 100, if that comes first
}

// TestABodyThatWasNotAskedForIsNotAwaited has clients that wait to be asked for a small
// body, and never are: the connection ends with the answer.
func TestABodyThatWasNotAskedForIsNotAwaited(t *testing.T) {
	s := newServer(t)
	for name, c := range map[string]struct {
		line, key string
		status    int
	}{
		"wrong key":      {"POST /vms", "hk_wrong", http.StatusUnauthorized},
		"no key":         {"POST /vms", "", http.StatusUnauthorized},
		"no such route":  {"POST /nothing", goodKey, http.StatusNotFound},
		"another method": {"DELETE /vms", goodKey, http.StatusMethodNotAllowed},
		"no body taken":  {"POST /vms/" + knownVM + "/stop", goodKey, http.StatusBadRequest},
	} {
		t.Run(name, func(t *testing.T) {
			client := s.dialRaw(t)
			client.begin(t, c.line, c.key, 20, "Expect: 100-continue\r\n", "")
			client.requireStatus(t, c.status)
		})
	}
}

func TestABodyThatIsNotJSONIsRefusedBeforeItIsSent(t *testing.T) {
	s := newServer(t)
	c := s.dialRaw(t)
	if _, err := fmt.Fprintf(c, "POST /vms HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer %s\r\nContent-Type: text/plain\r\nContent-Length: 20\r\nExpect: 100-continue\r\n\r\n", goodKey); err != nil {
		t.Fatal(err)
	}
	c.requireStatus(t, http.StatusUnsupportedMediaType)
}

func TestASlowBodyIsAnswered(t *testing.T) {
	s := newServer(t)
	c := s.dialRaw(t)
	c.begin(t, "POST /vms", goodKey, 20, "", "{")
	if err := c.Conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	c.requireStatus(t, http.StatusBadRequest)
	if !strings.Contains(s.log.String(), `"status":400`) {
		t.Error("the log has no line about the request")
	}
}

// endingBody calls end when it is read, as hatchd may end in the middle of a body.
type endingBody struct {
	io.ReadCloser
	end func()
}

func (b endingBody) Read(p []byte) (int, error) {
	b.end()
	return b.ReadCloser.Read(p)
}

// TestAStalledBodyDoesNotKeepHatchdFromEnding ends requests whose bodies do not arrive.
func TestAStalledBodyDoesNotKeepHatchdFromEnding(t *testing.T) {
	s := newServer(t)
	ending := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithCancel(r.Context())
		defer cancel()
		r.Body = endingBody{r.Body, cancel}
		s.Config.Handler.ServeHTTP(w, r.WithContext(ctx))
	}))
	defer ending.Close()
	for line, status := range map[string]int{
		"POST /vms": http.StatusServiceUnavailable, "POST /vms/" + knownVM + "/stop": http.StatusBadRequest,
		"PUT /vms/" + knownVM + "/files?path=/x": http.StatusServiceUnavailable,
	} {
		t.Run(line, func(t *testing.T) {
			conn, err := net.Dial("tcp", ending.Listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conn.Close() }()
			if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil { // less than a body may take
				t.Fatal(err)
			}
			c := &rawClient{Conn: conn, in: bufio.NewReader(conn)}
			c.begin(t, line, goodKey, 10, "", "{")
			c.requireStatus(t, status)
		})
	}
}
